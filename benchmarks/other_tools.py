"""Quantize a float ONNX file by other tools, for `latency.py` and `deployed.py`, which call it in their interpreter.

    python benchmarks/other_tools.py KIND MODEL OUT INPUTS...

INPUTS are `.npz` files of inputs by name, more than the model has. KIND is `nncf` (NNCF's post-training quantization to
8 bits, an OpenVINO model) or `int4` (4-bit weights beside float activations: an OpenVINO model by NNCF's
compress_weights or, if OUT ends in .onnx, ONNX Runtime's MatMulNBits). All by their defaults but for what is said here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

GROUP = 32
"""Number of weights that share a scale; it divides the channels of all models here."""


def with_nncf(model: Path, out: Path, inputs: Sequence[Path]) -> None:
    """Quantize by NNCF's post-training quantization for transformers."""
    import nncf
    import openvino

    read = openvino.Core().read_model(model)
    names = [value.get_any_name() for value in read.inputs]
    data = nncf.Dataset(inputs, lambda path: _read(path, names))
    quantized = nncf.quantize(read, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs))
    openvino.save_model(quantized, out, compress_to_fp16=False)


def with_int4_openvino(model: Path, out: Path) -> None:
    """Compress all layers to symmetric 4-bit weights by NNCF."""
    import nncf
    import openvino

    mode = nncf.CompressWeightsMode.INT4_SYM
    read = openvino.Core().read_model(model)
    compressed = nncf.compress_weights(read, mode=mode, group_size=GROUP, ratio=1.0, all_layers=True)
    openvino.save_model(compressed, out, compress_to_fp16=False)


def with_int4_onnx(model: Path, out: Path) -> None:
    """Compress all matrix products to 4-bit weights by ONNX Runtime."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(str(model), bits=4, block_size=GROUP, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def _read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in names}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Let another tool quantize a float ONNX file.")
    parser.add_argument("kind", choices=["nncf", "int4"])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("inputs", type=Path, nargs="*", help="to calibrate on")
    options = parser.parse_args(arguments)
    if options.kind == "nncf":
        with_nncf(options.model, options.out, options.inputs)
    elif options.out.suffix == ".onnx":
        with_int4_onnx(options.model, options.out)
    else:
        with_int4_openvino(options.model, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
