"""Threads may share a backend: each gets what it would have got alone."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from saqsam.export import export_model
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_pixels, tiny_processor

WORKERS = 4
ROUNDS = 24


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backend]:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    model = quantize_tiny(deployable(tiny_recipe(bits="w8a8")))
    export_model(model, tiny_processor(), folder)
    loaded = {name: load_runtime(folder, name, threads=1)[0] for name in ("onnxruntime", "openvino")}
    return {"torch": TorchBackend(model), **loaded}


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_threads_get_what_they_would_have_got_alone(backends: dict[str, Backend], runtime: str) -> None:
    backend = backends[runtime]

    @torch.inference_mode()
    def work(seed: int) -> tuple[torch.Tensor, ...]:
        features = backend.encode(tiny_pixels(seed=seed))
        prompts = Prompts(boxes=torch.tensor([[1.0 + seed % 7, 4.0, 40.0, 50.0]] * (1 + seed % 3)))
        return features.embedding, *backend.decode(features, prompts, False)

    alone = [work(seed) for seed in range(ROUNDS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        together = list(pool.map(work, range(ROUNDS)))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(alone[0][0], alone[1][0])


@pytest.mark.slow
def test_a_signal_after_a_model_is_gone_is_handled(tmp_path: Path) -> None:
    """OpenVINO's alternate signal stack must outlive its models; see `openvino_core`."""
    folder = tmp_path / "onnx"
    export_model(quantize_tiny(deployable(tiny_recipe(bits="w8a8"))), tiny_processor(), folder)
    script = """
import gc, signal, sys
from saqsam.runtimes import load_runtime
backend, _ = load_runtime(sys.argv[1], "openvino", threads=1)
del backend
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
