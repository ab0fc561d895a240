"""Small helpers with no dependency on the rest of the package. Every other module may import them."""
