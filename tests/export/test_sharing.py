"""Threads may share a loaded export: each gets what it would have got alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from saqsam.export import export_model
from saqsam.presets import deployable
from saqsam.prompts import Prompts
from saqsam.runtimes import load_runtime
from tiny_quantized import quantize_tiny, tiny_recipe
from tiny_sam import tiny_pixels, tiny_processor

WORKERS = 4
ROUNDS = 24


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    export_model(quantize_tiny(deployable(tiny_recipe(bits="w8a8"))), tiny_processor(), folder)
    return folder


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_threads_get_what_they_would_have_got_alone(exported: Path, runtime: str) -> None:
    backend, _ = load_runtime(exported, runtime, threads=1)

    def work(seed: int) -> tuple[torch.Tensor, ...]:
        embedding = backend.encode(tiny_pixels(seed=seed))
        prompts = Prompts(boxes=torch.tensor([[1.0 + seed % 7, 4.0, 40.0, 50.0]] * (1 + seed % 3)))
        return embedding, *backend.decode(embedding, prompts, False)

    alone = [work(seed) for seed in range(ROUNDS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        together = list(pool.map(work, range(ROUNDS)))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(alone[0][0], alone[1][0])
