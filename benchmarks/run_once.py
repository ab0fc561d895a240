"""One turn of `latency.py` in a process of its own: loads a model into a runtime, prints seconds and memory as JSON.

Imports no more than the runtime, so that its memory is what is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from memory import peak_gib


def prepare(order: dict[str, Any]) -> Callable[[], object]:
    """Load what an order names; returns what runs it once."""
    with np.load(order["inputs"]) as file:
        arrays = {name: file[name] for name in file.files}
    if order["runtime"] in ("torch", "torch-int8"):
        return _torch(order, arrays)
    if order["runtime"] == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = order["threads"]
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(order["model"], options, providers=["CPUExecutionProvider"])
        feed = {value.name: arrays[value.name] for value in session.get_inputs()}
        return lambda: session.run(None, feed)
    import openvino

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": order["threads"]}
    if order["runtime"] == "openvino":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(order["model"], "CPU", settings)
    # Compiling may give an input further names.
    names = [next(name for name in value.get_names() if name in arrays) for value in compiled.inputs]
    feed = {name: arrays[name] for name in names}
    request = compiled.create_infer_request()
    return lambda: request.infer(feed)


def _torch(order: dict[str, Any], arrays: dict[str, np.ndarray]) -> Callable[[], object]:
    import torch

    from latency_models import SUBJECTS, input_names, recipe_of_variant, wrapped
    from random_models import pack_uncalibrated
    from saqsam.runtimes import use_integer_kernels

    torch.set_num_threads(order["threads"])
    model = SUBJECTS[order["subject"]]()
    if order["variant"] != "eager":
        pack_uncalibrated(model, recipe_of_variant(order["variant"]))
    if order["runtime"] == "torch-int8":
        use_integer_kernels(model)
    module = wrapped(model, order["part"])
    example = [torch.from_numpy(arrays[name]) for name in input_names(model, order["part"])]

    def run() -> object:
        with torch.inference_mode():
            return module(*example)

    return run


def main() -> int:
    """Entry point: the order is the only argument, as JSON."""
    order = json.loads(sys.argv[1])
    run = prepare(order)
    run()
    seconds, cpu_seconds = [], []
    for _ in range(order["runs"]):
        start, cpu_start = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gib": peak_gib()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
