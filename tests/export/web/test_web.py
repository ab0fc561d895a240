"""Web exports: what the folder holds, what runs it, and what is refused."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from saqsam.checkpoint import save_checkpoint
from saqsam.export import check_export, export_model, read_manifest
from saqsam.export.formats import FORMATS
from saqsam.export.web import runtime
from saqsam.inference.predictor import Predictor
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from support.coco_folder import picture
from support.command_line import assert_done, assert_refused, run
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam
from support.tiny_sam2 import tiny_sam2, tiny_sam2_config, tiny_sam2_processor

PAGE = {"index.html", "page.css", "page.js", "models.js", "worker.js", "prompts.js", "pixels.js", "masks.js"}
PHOTOGRAPHS = {"samples/cat.jpg", "samples/coffee.jpg", "samples/astronaut.jpg"}
OTHERS = {"encoder.onnx", "decoder.onnx", "export.json", "processor_config.json"}


@pytest.fixture(scope="module")
def model() -> Any:
    return quantize_tiny(deployable(tiny_recipe(bits="w4a8")))


@pytest.fixture(scope="module")
def export(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "out"
    export_model(model, tiny_processor(), folder, format="web")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the npm package, whose hashes count as the right ones."""
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    content = {"name": "onnxruntime-web", "version": runtime.VERSION}
    (folder / "package.json").write_text(json.dumps(content))
    for name in runtime.FILES["wasm"]:
        (folder / "dist" / name).write_bytes(name.encode())
    hashes = {name: runtime._sha384(folder / "dist" / name) for name in runtime.FILES["wasm"]}
    monkeypatch.setattr(runtime, "SHA384", hashes)
    return folder


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_graphs_and_page(export: Path) -> None:
    assert files_in(export) == PAGE | PHOTOGRAPHS | OTHERS
    manifest = read_manifest(export)
    assert manifest.format == "web"
    assert manifest.files.keys() == {"encoder.onnx", "decoder.onnx"} == FORMATS["web"].file_names()
    assert manifest.details["page"].keys() == PAGE | PHOTOGRAPHS
    for name, expected in manifest.details["page"].items():
        assert hashlib.sha256((export / name).read_bytes()).hexdigest() == expected
    assert manifest.details["bytes"] == {name: (export / name).stat().st_size for name in manifest.files}
    assert (manifest.details["side"], manifest.details["mask_side"]) == (64, 32)
    assert manifest.details["stability"] is None
    assert not manifest.details["pads_boxes"]


def test_the_policy_allows_the_folder_and_webassembly_alone(export: Path) -> None:
    index = (export / "index.html").read_text()
    (policy,) = [line for line in index.splitlines() if "Content-Security-Policy" in line]
    assert "default-src 'none'" in policy
    assert "script-src 'self' 'wasm-unsafe-eval';" in policy
    assert "unsafe-inline" not in policy
    assert "http" not in policy.replace("http-equiv", "")
    assert index.index(policy) < index.index("<title>")
    assert "python -m http.server" in index  # what the page says where no script runs


def test_the_decoder_leaves_resizing_to_the_page(export: Path) -> None:
    graph = onnx.load(export / "decoder.onnx").graph
    assert [value.name for value in graph.output] == ["iou_predictions", "low_res_masks"]
    assert "orig_im_size" not in {value.name for value in graph.input}


def test_masks_are_those_of_the_onnx_export(model: Any, export: Path, tmp_path: Path) -> None:
    export_model(model, tiny_processor(), tmp_path / "onnx")
    image = picture((45, 60))
    masks = []
    for folder in (export, tmp_path / "onnx"):
        predictor = Predictor(*load_runtime(folder, threads=1))
        predictor.set_image(image)
        masks.append(predictor.predict(box=[10, 5, 50, 40], return_logits=True)[0])
    np.testing.assert_array_equal(*masks)


def test_float_models_and_single_masks(tmp_path: Path) -> None:
    written = export_model(tiny_sam(), tiny_processor(), tmp_path / "out", format="web", single_mask=True)
    assert written.single_mask
    assert written.name == "float"
    outputs = onnx.load(tmp_path / "out" / "decoder.onnx").graph.output
    assert outputs[0].type.tensor_type.shape.dim[1].dim_value == 1


def test_rules_of_sam2_reach_the_page(tmp_path: Path) -> None:
    config = tiny_sam2_config(dynamic_multimask_via_stability=True)
    written = export_model(
        tiny_sam2(config=config), tiny_sam2_processor(config), tmp_path / "out", format="web"
    )
    decoder = config.mask_decoder_config
    assert written.details["stability"] == {
        "delta": decoder.dynamic_multimask_stability_delta,
        "threshold": decoder.dynamic_multimask_stability_thresh,
    }
    assert written.details["pads_boxes"]
    assert isinstance(written.processor["size"], list)


def test_the_page_loads_onnxruntime_web_from_the_cdn_by_default(export: Path) -> None:
    details = read_manifest(export).details["runtime"]
    assert details["version"] == runtime.VERSION
    assert details["base"] == f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{runtime.VERSION}/dist/"
    names = {name for files in details["files"].values() for name in files}
    assert details["integrity"].keys() == names
    assert all(value.startswith("sha384-") and len(value) == 71 for value in details["integrity"].values())


@pytest.mark.parametrize("part", ["", "dist"])
def test_onnxruntime_web_is_copied(model: Any, package: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "out"
    export_model(model, tiny_processor(), folder, format="web", web_runtime=package / part)
    copied = {f"onnxruntime-web/{name}" for name in runtime.FILES["wasm"]}
    assert files_in(folder) == PAGE | PHOTOGRAPHS | OTHERS | copied
    assert read_manifest(folder).details["runtime"]["base"] == "onnxruntime-web/"


def _rename(package: Path, version: str) -> None:
    (package / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": version}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shutil.rmtree, "found none"),
        (lambda package: _rename(package, "1.22.0"), "found '?1.22.0'?"),
        (lambda package: (package / "dist" / runtime.FILES["wasm"][1]).unlink(), "wasm is missing"),
        (lambda package: (package / "dist" / runtime.FILES["wasm"][0]).write_text("other"), "found another"),
    ],
)
def test_another_onnxruntime_web_is_refused(package: Path, tmp_path: Path, damage: Any, reason: str) -> None:
    damage(package)
    with pytest.raises(ValueError, match=rf"onnxruntime-web 1\.30\.0.*{reason}.*npm install") as error:
        check_export("web", tmp_path / "out", web_runtime=package, overwrite=False)
    assert "\n" not in str(error.value)


def test_other_formats_have_no_page(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="web_runtime: the format onnx has no page"):
        check_export("onnx", tmp_path / "out", web_runtime=package, overwrite=False)
    with pytest.raises(ValueError, match="opset: the format web has none, got 17"):
        check_export("web", tmp_path / "out", opset=17, overwrite=False)
    with pytest.raises(ValueError, match="free_batch: the encoder of the format web takes one image"):
        check_export("web", tmp_path / "out", free_batch=True, overwrite=False)


def test_the_command_says_what_remains_to_be_done(model: Any, package: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(model, tiny_processor(), tmp_path / "checkpoint")
    out = tmp_path / "out"
    export = ("export", checkpoint, "--format", "web", "--out", out, "--runtime", "onnxruntime")
    done = run(*export)
    assert_done(done)
    text = " ".join(done.stdout.split())
    assert f"npm install onnxruntime-web@{runtime.VERSION}" in text
    assert f"python -m http.server --directory {out}" in text
    assert (out / "parity.json").is_file()
    assert_refused(run(*export), "out exists")
    copied = run(*export, "--overwrite", "--onnxruntime-web", package)
    assert_done(copied)
    assert "cdn" not in copied.stdout
    assert (out / "onnxruntime-web" / runtime.FILES["wasm"][0]).is_file()
    missing = (*export, "--overwrite", "--onnxruntime-web", tmp_path / "nowhere")
    assert_refused(run(*missing), "nowhere", "expected the folder of onnxruntime-web 1.30.0")
