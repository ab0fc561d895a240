"""An exported folder runs on the device that is asked for, or says in one line why it cannot."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from saqsam.checkpoint import save_checkpoint
from saqsam.export import export_model, openvino_core
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from saqsam.runtimes import onnxruntime as onnxruntime_backend
from saqsam.runtimes.devices import execution_providers
from saqsam.runtimes.registry import RUNTIMES
from support.coco_folder import make_coco, picture
from support.command_line import assert_done, assert_refused, run
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_pixels, tiny_processor

CPU, CUDA, AZURE = "CPUExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider"


def offer(monkeypatch: pytest.MonkeyPatch, *providers: str, cuda: bool = False) -> None:
    """Let ONNX Runtime offer these providers, and torch CUDA or not."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)


@pytest.mark.parametrize(
    ("device", "providers", "cuda", "expected"),
    [
        ("auto", (CPU,), False, "cpu"),
        ("auto", (CPU,), True, "cpu"),
        ("auto", (CUDA, CPU), False, "cpu"),
        ("auto", (CUDA, CPU), True, "cuda:0"),
        ("cpu", (CUDA, CPU), True, "cpu"),
        ("CPU", (CPU,), False, "cpu"),
        ("cuda", (CUDA, CPU), False, "cuda:0"),
        ("cuda:3", (CUDA, CPU), True, "cuda:3"),
    ],
)
def test_onnx_runtime_takes_cuda_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, device: str, providers: tuple[str, ...], cuda: bool, expected: str
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    offer(monkeypatch, *providers, cuda=cuda)
    assert RUNTIMES["onnxruntime"].resolve_device(device) == expected


def test_each_process_of_torchrun_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, CUDA, CPU, cuda=True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RUNTIMES["onnxruntime"].resolve_device("auto") == "cuda:1"


def test_providers_fall_back_to_the_cpu_node_by_node() -> None:
    assert execution_providers("cpu") == [CPU]
    assert execution_providers("cuda:2") == [(CUDA, {"device_id": 2}), CPU]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "CUDA:1"])
def test_cuda_needs_another_package(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    offer(monkeypatch, AZURE, CPU)
    words = f"device {device} cannot be used: this onnxruntime has only {CPU}; install onnxruntime-gpu"
    with pytest.raises(ValueError, match=words):
        RUNTIMES["onnxruntime"].resolve_device(device)


@pytest.mark.parametrize(
    "device", ["nonsense", "", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "mps", "gpu", "cpu:1"]
)
def test_onnx_runtime_refuses_devices_that_it_does_not_know(device: str) -> None:
    with pytest.raises(
        ValueError, match=f"device {device} cannot be used: expected auto, cpu, cuda or cuda:N"
    ):
        RUNTIMES["onnxruntime"].resolve_device(device)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", "CPU"),
        ("cpu", "CPU"),
        ("GPU", "GPU"),
        ("gpu", "GPU"),
        ("gpu.1", "GPU.1"),
        ("gpu:0", "GPU.0"),
        ("npu", "NPU"),
    ],
)
def test_openvino_takes_its_own_devices(monkeypatch: pytest.MonkeyPatch, device: str, expected: str) -> None:
    class Core:
        available_devices = ("CPU", "GPU.0", "GPU.1", "NPU")

    monkeypatch.setattr(openvino_core, "openvino_core", Core)
    assert RUNTIMES["openvino"].resolve_device(device) == expected


@pytest.mark.parametrize("device", ["cuda", "nonsense", "", "gpu.7", "xpu"])
def test_openvino_refuses_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(ValueError, match=f"device {device} cannot be used: openvino finds only CPU"):
        RUNTIMES["openvino"].resolve_device(device)


def test_executorch_runs_on_the_cpu() -> None:
    assert (
        RUNTIMES["executorch"].resolve_device("auto") == RUNTIMES["executorch"].resolve_device("cpu") == "cpu"
    )
    with pytest.raises(
        ValueError, match="device cuda cannot be used: saqsam runs executorch on the CPU only"
    ):
        RUNTIMES["executorch"].resolve_device("cuda")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint and an export of it, to be changed by no test."""
    root = tmp_path_factory.mktemp("models")
    model = quantize_tiny(deployable(tiny_recipe(bits="w8a8")))
    save_checkpoint(model, tiny_processor(), root / "checkpoint")
    export_model(model, tiny_processor(), root / "export")
    return {"checkpoint": root / "checkpoint", "export": root / "export"}


def test_the_session_is_given_the_device(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    create = onnxruntime.InferenceSession

    def record(model: bytes, options: Any, providers: list[Any]) -> Any:
        asked.append(providers)
        return create(model, options, providers=[CPU])

    offer(monkeypatch, CUDA, CPU)
    monkeypatch.setattr(onnxruntime_backend.onnxruntime, "InferenceSession", record)
    monkeypatch.setattr(create, "get_providers", lambda _: [CUDA, CPU])
    backend, _ = load_runtime(folders["export"], device="cuda:1")
    assert asked == [[(CUDA, {"device_id": 1}), CPU]] * 2
    assert np.isfinite(backend.encode(tiny_pixels()).embedding.numpy()).all()


def test_a_provider_that_does_not_start_is_an_error(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself goes on with the CPU."""
    offer(monkeypatch, CUDA, CPU)
    with pytest.raises(ValueError, match="device cuda:0 cannot be used: "):
        load_runtime(folders["export"], device="cuda")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_device_is_refused_before_anything_is_loaded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("model files were read")

    monkeypatch.setattr("saqsam.runtimes.loading.check_files", fail)
    with pytest.raises(ValueError, match="device nonsense cannot be used"):
        load_runtime(folders["export"], runtime, device="nonsense")


@pytest.mark.parametrize("kind", ["checkpoint", "export", "export@openvino"])
@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_every_command_refuses_a_device_in_one_line(
    folders: dict[str, Path], tmp_path: Path, kind: str, device: str
) -> None:
    name, _, runtime = kind.partition("@")
    model = folders[name]
    more = ("--runtime", runtime) if runtime else ()
    data = make_coco(tmp_path / "coco")
    Image.fromarray(picture((40, 60))).save(tmp_path / "photo.png")
    words = f"device {device} cannot be used"
    assert_refused(run("evaluate", model, "--data", data, "--device", device, *more), words)
    segment = ("segment", model, tmp_path / "photo.png", "--box", "5,5,30,30", "--device", device)
    assert_refused(run(*segment, *more), words)
    pair = (folders["checkpoint"], f"{model}@{runtime}") if runtime else (model, folders["checkpoint"])
    assert_refused(run("compare", *pair, "--data", data, "--device", device), words)
    if kind == "checkpoint":
        report = ("report", model, "--out", tmp_path / "report.html", "--data", data, "--device", device)
        assert_refused(run(*report), words)
        return
    assert_done(run("evaluate", model, "--data", data, "--device", "cpu", "--limit", "1", *more))
