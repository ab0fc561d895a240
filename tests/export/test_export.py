"""Exported folders: what they hold, what runs them, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SamProcessor

import saqsam
from saqsam.checkpoint import save_checkpoint
from saqsam.export import export_model, manifest, read_manifest
from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from saqsam.verification.parity import TorchReference, compare_with_torch
from support.tiny_quantized import quantize_tiny, quantized_tiny, tiny_data, tiny_recipe
from support.tiny_sam import IMAGE_SIZE, tiny_processor

RUNS = (("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino"))
FORMATS = ("onnx", "openvino")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed") / "checkpoint"
    return save_checkpoint(quantize_tiny(deployable(tiny_recipe(bits="w4a8"))), tiny_processor(), folder)


@pytest.fixture(scope="module")
def exports(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of the checkpoint in each format, to be changed by no test."""
    root = tmp_path_factory.mktemp("exports")
    model, processor = saqsam.load(checkpoint)
    for format in FORMATS:
        export_model(model, processor, root / format, format=format)
    return {format: root / format for format in FORMATS}


@pytest.mark.slow
@pytest.mark.parametrize(("format", "runtime"), RUNS)
def test_runtimes_give_torchs_masks(
    checkpoint: Path, exports: dict[str, Path], format: str, runtime: str
) -> None:
    model, _ = saqsam.load(checkpoint)
    backend, processor = load_runtime(exports[format], runtime, threads=1)
    parity = compare_with_torch(backend, processor, TorchReference(model, processor, tiny_data(3)))
    assert [tensor.name for tensor in parity.tensors] == [
        "image_embeddings",
        "low_res_masks",
        "iou_predictions",
    ]
    assert parity.tensors[0].shape == (1, 32, 8, 8)
    assert all(tensor.relative < 0.05 for tensor in parity.tensors)
    assert parity.mask_iou > 0.95
    assert parity.masks > 3
    assert parity.images == 3
    assert json.loads(json.dumps(parity.to_dict()))["mask_iou"] == parity.mask_iou


@pytest.mark.slow
@pytest.mark.parametrize(("format", "runtime"), RUNS)
@pytest.mark.parametrize("kind", ["box", "point", "both", "mask"])
def test_the_predictor_takes_all_prompts_in_all_runtimes(
    checkpoint: Path, exports: dict[str, Path], format: str, runtime: str, kind: str
) -> None:
    model, _ = saqsam.load(checkpoint)
    image = tiny_data()[0].image
    found = []
    for backend, processor in (
        load_runtime(exports[format], runtime, threads=1),
        (TorchBackend(model), tiny_processor()),
    ):
        predictor = Predictor(backend, processor)
        predictor.set_image(image)
        box, point = np.array([5, 6, 50, 40]), np.array([[20.0, 30.0]])
        given = {
            "box": {"box": box},
            "point": {"point_coords": point, "point_labels": np.array([1])},
            "both": {"box": box, "point_coords": point, "point_labels": np.array([0])},
            "mask": {"box": box, "mask_input": np.linspace(-3, 3, 32 * 32).reshape(1, 32, 32)},
        }[kind]
        for multimask in (False, True):
            masks, ious, low_res = predictor.predict(**given, multimask_output=multimask, return_logits=True)
            assert masks.shape == (3 if multimask else 1, *image.shape[:2])
            found.append((masks, ious, low_res))
    for one, other in zip(found[:2], found[2:], strict=True):
        for mine, torchs in zip(one[::2], other[::2], strict=True):
            assert np.linalg.norm(mine - torchs) / np.linalg.norm(torchs) < 0.1
        # A predicted IoU is a single number: it comes from one of two neighboring codes, by processor.
        np.testing.assert_allclose(one[1], other[1], atol=0.05)


def test_the_same_model_gives_the_same_files(
    checkpoint: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = saqsam.load(checkpoint)
    export_model(model, processor, tmp_path / "again")
    for name in ("encoder.onnx", "decoder.onnx", "export.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exports["onnx"] / name).read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_the_manifest_tells_what_was_exported(
    checkpoint: Path, exports: dict[str, Path], format: str
) -> None:
    model, _ = saqsam.load(checkpoint)
    found = read_manifest(exports[format])
    assert found.format == format
    assert found.name == "min-max-deploy-w4a8-mixed"
    assert found.checkpoint == model.config.quantization_config.content_sha256
    assert found.recipe == saqsam.recipe_of(model).to_dict()
    assert found.sam_config.vision_config.image_size == IMAGE_SIZE
    assert isinstance(found.read_processor(exports[format]), SamProcessor)
    wanted = {"encoder.onnx", "decoder.onnx"}
    if format == "openvino":
        wanted = {f"{part}.{suffix}" for part in ("encoder", "decoder") for suffix in ("xml", "bin")}
    assert set(found.files) == wanted


def test_a_single_mask_is_what_was_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    model, processor = saqsam.load(checkpoint)
    export_model(model, processor, tmp_path / "one", single_mask=True)
    predictor = Predictor(*load_runtime(tmp_path / "one"))
    predictor.set_image(tiny_data()[0].image)
    masks, _, _ = predictor.predict(box=np.array([5, 6, 50, 40]), multimask_output=False)
    assert len(masks) == 1
    with pytest.raises(ValueError, match="--single-mask"):
        predictor.predict(np.array([[20.0, 30.0]]), np.array([1]), multimask_output=True)


def test_what_kernels_cannot_run_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = quantized_tiny()
    saqsam.save_checkpoint(model, tiny_processor(), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="--deploy"):
        export_model(model, tiny_processor(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_missing_package_is_named_with_what_to_install(
    checkpoint: Path, exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = saqsam.load(checkpoint)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"onnx needs the package onnx: pip install 'saqsam\[onnx\]'"):
        export_model(model, processor, tmp_path / "out")
    with pytest.raises(ValueError, match=r"onnxruntime is missing: pip install 'saqsam\[onnx\]'"):
        load_runtime(exports["onnx"])
    with pytest.raises(ValueError, match=r"openvino is missing: pip install 'saqsam\[openvino\]'"):
        load_runtime(exports["openvino"])


def test_an_existing_folder_is_kept_unless_it_is_an_export(
    checkpoint: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    model, processor = saqsam.load(checkpoint)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        export_model(model, processor, out)
    with pytest.raises(ValueError, match="never overwritten"):
        export_model(model, processor, out, overwrite=True)
    (out / "mine.txt").unlink()
    export_model(model, processor, out, overwrite=True)
    export_model(model, processor, out, overwrite=True)
    assert read_manifest(out).files == read_manifest(exports["onnx"]).files


@pytest.fixture
def damaged(exports: dict[str, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    for file in exports["onnx"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_file_cut_short_is_named(damaged: Path) -> None:
    content = (damaged / "decoder.onnx").read_bytes()
    (damaged / "decoder.onnx").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"decoder\.onnx.*cut short"):
        load_runtime(damaged)
    (damaged / "decoder.onnx").unlink()
    with pytest.raises(ValueError, match=r"decoder\.onnx is missing"):
        load_runtime(damaged)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 99}, "expected version 2, got 99"),
        ({"unknown": 1}, "was altered"),
    ],
)
def test_a_manifest_of_another_version_is_refused(damaged: Path, change: dict[str, int], words: str) -> None:
    path = damaged / manifest.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=words):
        load_runtime(damaged)
    path.write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        load_runtime(damaged)
    path.unlink()
    with pytest.raises(ValueError, match=r"not an export of saqsam"):
        load_runtime(damaged)


def test_a_runtime_that_does_not_fit_is_refused(exports: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="expected one of onnxruntime"):
        load_runtime(exports["onnx"], "tensorflow")
    with pytest.raises(ValueError, match="onnxruntime does not run exports of the format openvino"):
        load_runtime(exports["openvino"], "onnxruntime")
    with pytest.raises(ValueError, match="at least 1"):
        load_runtime(exports["onnx"], threads=0)


@pytest.mark.parametrize(("format", "runtime"), RUNS)
def test_pixels_of_another_size_are_refused(exports: dict[str, Path], format: str, runtime: str) -> None:
    backend, _ = load_runtime(exports[format], runtime, threads=1)
    with pytest.raises(ValueError, match=r"takes \(1, 3, 64, 64\), got \(1, 3, 32, 64\)"):
        backend.encode(torch.zeros(1, 3, 32, 64))


def test_an_unknown_format_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    model, processor = saqsam.load(checkpoint)
    with pytest.raises(ValueError, match="expected one of onnx, openvino"):
        export_model(model, processor, tmp_path / "out", format="tflite")


def test_asymmetric_activations_and_their_zero_points_are_exported(tmp_path: Path) -> None:
    """Ranges that are not centered: every code has its zero point, the padding of windows too."""
    recipe = dataclasses.replace(deployable(tiny_recipe(bits="w8a8")), encoder_products="quantized")
    model = quantize_tiny(recipe)
    zero_points = {int(m.zero_point) for m in model.modules() if type(m).__name__ == "AffineQuantizer"}
    assert len(zero_points) > 20
    save_checkpoint(model, tiny_processor(), tmp_path / "checkpoint")
    export_model(model, tiny_processor(), tmp_path / "out")
    backend, processor = load_runtime(tmp_path / "out", threads=1)
    reference = TorchReference(model, processor, tiny_data(2))
    assert compare_with_torch(backend, processor, reference).mask_iou > 0.95
