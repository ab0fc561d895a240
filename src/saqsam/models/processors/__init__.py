"""Image processors by canvas: `padded` resizes the longest side and pads, `stretched` resizes to a square."""
