"""ExecuTorch programs of a quantized model: one folder of modules per SAM family."""
