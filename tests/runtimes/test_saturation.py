"""OpenVINO computes what its graph says on processors whose integer products saturate, too."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13

from saqsam.export import openvino_core
from saqsam.export.onnx.graph import Graph
from saqsam.runtimes import openvino as backend
from saqsam.runtimes.onnxruntime import session

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def product(size: tuple[int, int], weight: np.ndarray) -> openvino.Model:
    """A quantized matrix product as exports have it."""
    pixels = opset13.parameter(list(size), openvino.Type.f32)
    low, high = (opset13.constant(np.float32(value)) for value in (0, 255))
    codes = opset13.fake_quantize(pixels, low, high, low, high, 256)
    wide = opset13.convert(opset13.constant(weight), openvino.Type.f32)
    scaled = opset13.multiply(wide, opset13.constant(np.full((1, weight.shape[1]), 0.01, np.float32)))
    return openvino.Model([opset13.matmul(codes, scaled, False, False)], [pixels])


def compute(model: openvino.Model, rows: np.ndarray, settings: dict[str, str]) -> np.ndarray:
    return openvino_core.openvino_core().compile_model(model, "CPU", F32 | settings)(rows)[0]


def test_products_are_exact() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(128, 256, (32, 256)).astype(np.float32)
    weight = rng.integers(-127, 128, (256, 64)).astype(np.int8)
    expected = rows @ (weight * 0.01)
    model = product(rows.shape, weight)
    error = np.abs(compute(model, rows, {}) - expected).max()
    assert (error > 10) == openvino_core.saturates_integers()
    found = compute(model, rows, openvino_core.make_exact(model))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.5)


@pytest.mark.parametrize("shape", [(64, 32), (2, 32, 32)])
def test_normalized_and_clipped_codes_are_exact(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a layer with activations of 4 bits."""
    monkeypatch.setattr(openvino_core, "saturates_integers", lambda: True)
    rng = np.random.default_rng(0)
    graph, step = Graph("codes"), 0.33
    value = graph.input("rows", shape)
    gain, shift = (rng.normal(mean, 0.3, 32).astype(np.float32) for mean in (1, 0))
    value = graph.op("LayerNormalization", value, graph.constant(gain), graph.constant(shift), axis=-1)
    value = graph.op("Clip", value, graph.scalar(-7 * step), graph.scalar(8 * step))
    scale, zero = graph.scalar(step), graph.constant(np.uint8(7))
    codes = graph.op("QuantizeLinear", value, scale, zero)
    graph.output(graph.op("DequantizeLinear", codes, scale, zero), "codes", shape)
    content = graph.model({}).SerializeToString()
    rows = rng.normal(size=shape).astype(np.float32)
    (expected,) = session(content, threads=1).run(None, {"rows": rows})
    model = openvino_core.openvino_core().read_model(content)
    found = compute(model, rows, openvino_core.make_exact(model))
    assert (np.abs(found - expected) > step / 2).mean() < 0.002  # values at the border of two codes


def test_other_processors_keep_their_integer_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_core, "saturates_integers", lambda: False)
    assert openvino_core.make_exact(product((4, 4), np.ones((4, 4), np.int8))) == {}


@pytest.mark.parametrize(("device", "mode"), [("CPU", "NO"), ("GPU", None)])
def test_the_backend_asks_for_exact_kernels_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, device: str, mode: str | None
) -> None:
    seen: list[dict[str, Any]] = []
    core = SimpleNamespace(compile_model=lambda *arguments: seen.append(arguments[2]))
    model = product((4, 4), np.ones((4, 4), np.int8))
    monkeypatch.setattr(backend, "openvino_core", lambda: core)
    monkeypatch.setattr(backend, "read_model", lambda *_: model)
    monkeypatch.setattr(backend, "check_interface", lambda *_: None)
    monkeypatch.setattr(backend, "keep_results", lambda model, _: model)
    monkeypatch.setattr(backend, "make_exact", lambda _: {"LP_TRANSFORMS_MODE": "NO"})
    manifest = SimpleNamespace(model_file=lambda *_: None)
    backend._Compiled(manifest, None, "decoder", (), {"INFERENCE_NUM_THREADS": 1}, device)  # type: ignore[arg-type]
    assert [settings.get("LP_TRANSFORMS_MODE") for settings in seen] == [mode]
