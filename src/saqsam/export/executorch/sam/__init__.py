"""ExecuTorch modules of SAM v1."""
