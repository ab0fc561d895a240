"""Defaults of a quantization, shared by `saqsam.quantize` and the command line.

This module imports nothing, so that the command line can show its defaults without importing torch.
"""

DEFAULT_METHOD = "saq-sam-plus"
DEFAULT_BITS = "w4a4"
DEFAULT_EFFORT = "standard"
DEFAULT_CALIBRATION = "scenes"
"""Calibration data: the bundled scenes."""
DEFAULT_CALIBRATION_IMAGES = 32
DEFAULT_SEED = 0
DEFAULT_MEMORY = "4GiB"
"""Memory for captured activations; what exceeds it is spilled to disk."""
