"""Exported folders are untrusted input: what decides a mask is hashed, and everything else checked when it is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from saqsam.export import export_model, manifest
from saqsam.export.manifest import MANIFEST, Manifest, file_hash, manifest_hash, read_manifest
from saqsam.export.onnx import reader as onnx_file
from saqsam.export.onnx.reader import read_onnx
from saqsam.inference.predictor import Predictor
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from saqsam.utils.errors import CheckpointError
from support.tiny_quantized import quantize_tiny, tiny_data, tiny_recipe
from support.tiny_sam import tiny_processor

RUNS = (("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino"))
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export in each format, to be changed by no test."""
    root = tmp_path_factory.mktemp("exports")
    model = quantize_tiny(deployable(tiny_recipe(bits="w4a8")))
    for format in ("onnx", "openvino"):
        export_model(model, tiny_processor(), root / format, format=format)
    return {format: root / format for format in ("onnx", "openvino")}


@pytest.fixture
def folder(exports: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the ONNX export."""
    return Path(shutil.copytree(exports["onnx"], tmp_path / "export"))


def edit(folder: Path, change: Change, *, recompute: bool = True, name: str = MANIFEST) -> None:
    """Change a JSON file, and let the manifest's hash fit it."""
    raw = json.loads((folder / name).read_text())
    change(raw)
    if recompute and "sha256" in raw:
        raw["sha256"] = manifest_hash(raw)
    (folder / name).write_text(json.dumps(raw))


def rehash(folder: Path, *names: str) -> None:
    """Let the manifest's hashes fit changed model files."""
    edit(folder, lambda raw: raw["files"].update({name: file_hash(folder / name) for name in names}))


def refuse(folder: Path, words: str, runtime: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_runtime(folder, runtime, threads=1)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def mask(folder: Path) -> np.ndarray:
    predictor = Predictor(*load_runtime(folder, threads=1))
    predictor.set_image(tiny_data()[0].image)
    return predictor.predict(box=np.array([5, 6, 50, 40]), return_logits=True)[0]


# ---- the manifest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("single_mask", True),
        ("name", "another"),
        ("checkpoint", "0" * 64),
        ("details", {"a": 1}),
        ("format", "openvino"),
        ("processor", {}),
    ],
)
def test_every_field_is_hashed(folder: Path, field: str, value: object) -> None:
    edit(folder, lambda raw: raw.update({field: value}), recompute=False)
    refuse(folder, r"export\.json was altered: its hash differs")


@pytest.mark.parametrize(
    "path",
    [
        ("config", "vision_config", "image_size"),
        ("config", "vision_config", "layer_norm_eps"),
        ("config", "prompt_encoder_config", "hidden_size"),
        ("recipe", "name"),
        ("processor", "image_mean"),
        ("files", "encoder.onnx"),
    ],
)
def test_what_lies_deeper_is_hashed_too(folder: Path, path: tuple[str, ...]) -> None:
    def change(raw: dict[str, Any]) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = "other"

    edit(folder, change, recompute=False)
    refuse(folder, r"export\.json was altered")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.update(format="tflite"), "format: expected one of onnx, openvino"),
        (lambda raw: raw.update(format=["onnx"]), "format: expected one of"),
        (lambda raw: raw.update(single_mask=0), "single_mask: expected true or false, got 0"),
        (lambda raw: raw.update(name=""), "name: expected a short name"),
        (lambda raw: raw.update(name="x" * 10**5), r"name: expected a short name, got 'x+\.\.\."),
        (lambda raw: raw.update(name="other"), "name: expected the recipe's"),
        (lambda raw: raw.update(checkpoint="abc"), "checkpoint: expected a SHA-256"),
        (lambda raw: raw.update(config=[]), "config: expected a JSON object"),
        (
            lambda raw: raw["config"]["vision_config"].update(image_size=10**9),
            "image_size: expected an integer",
        ),
        (
            lambda raw: raw["config"]["vision_config"].update(num_hidden_layers="x"),
            "num_hidden_layers: expected",
        ),
        (lambda raw: raw.update(recipe={}), "export.json: "),
        (lambda raw: raw["recipe"].update(weights=3), "weights must be a mapping"),
        (lambda raw: raw.update(recipe=[]), "recipe: expected a JSON object, or null for a float model"),
        (lambda raw: raw.update(recipe=None), "name: expected the recipe's, 'float', got 'min-max-"),
        (lambda raw: raw.update(details=None), "details: expected a JSON object"),
        (lambda raw: raw.update(files={}), "files: expected decoder.onnx, encoder.onnx"),
        (
            lambda raw: raw["files"].update({"../evil": "0" * 64}),
            "files: expected decoder.onnx, encoder.onnx",
        ),
        (lambda raw: raw["files"].update({"encoder.onnx": 3}), "files: expected a JSON object of SHA-256"),
        (lambda raw: raw.pop("config"), "field 'config' is missing"),
        (lambda raw: raw.update(surprise=1), "unknown field 'surprise'"),
        (lambda raw: raw.update(version=3), "expected version 2, got 3"),
        (lambda raw: raw.update(version=True), "expected version 2, got True"),
        (lambda raw: raw.update(version="2"), "expected version 2, got '2'"),
    ],
)
def test_fields_are_checked_whatever_the_hash_says(folder: Path, change: Change, words: str) -> None:
    edit(folder, change)
    refuse(folder, words)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10**5, '{"version": NaN}', '{"a": 1, "a": 2}'])
def test_json_that_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    refuse(folder, r"export\.json: expected")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from([*(f for f in Manifest.__dataclass_fields__), "sha256", "extra"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_a_manifest_reads_as_written_or_is_refused(exports: dict[str, Path], key: str, value: object) -> None:
    folder = exports["onnx"].with_name("changed")
    if not folder.exists():
        shutil.copytree(exports["onnx"], folder)
    raw = json.loads((exports["onnx"] / MANIFEST).read_text())
    was_same = key in raw and json.dumps(raw[key]) == json.dumps(value)
    raw[key] = value
    (folder / MANIFEST).write_text(json.dumps(raw))
    if was_same:
        assert read_manifest(folder) == read_manifest(exports["onnx"])
    else:
        with pytest.raises(CheckpointError):
            read_manifest(folder)


def test_a_manifest_of_the_first_version_loads_with_a_note(folder: Path) -> None:
    wanted = mask(folder)

    def downgrade(raw: dict[str, Any]) -> None:
        raw["version"] = 1
        del raw["sha256"], raw["processor"]

    edit(folder, downgrade)
    with pytest.warns(UserWarning, match="written by an older saqsam"):
        np.testing.assert_array_equal(mask(folder), wanted)
    edit(folder, lambda raw: raw.update(single_mask="no"))
    refuse(folder, "single_mask: expected true or false")


# ---- the processor


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_mean": [0, 0, 0]}, "the processor was altered: expected image_mean"),
        ({"image_std": [1, 1, 1]}, "the processor was altered: expected image_std"),
        ({"do_normalize": False}, "the processor was altered: expected do_normalize True"),
        ({"resample": 0}, "the processor was altered: expected resample"),
        ({"rescale_factor": 1.0}, "the processor was altered: expected rescale_factor"),
        ({"image_std": [0, 1, 1]}, "image_std: expected three numbers"),
        ({"size": {"longest_edge": 1024}}, "expected images of 64 px"),
    ],
)
def test_a_changed_processor_is_noticed(folder: Path, change: dict[str, Any], words: str) -> None:
    edit(folder, lambda raw: raw["image_processor"].update(change), name="processor_config.json")
    refuse(folder, words)


def test_another_processor_file_changes_nothing(folder: Path) -> None:
    raw = json.loads((folder / "processor_config.json").read_text())
    other = {**raw["image_processor"], "image_mean": [0.0, 0.0, 0.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(other))
    load_runtime(folder)
    (folder / "processor_config.json").unlink()
    refuse(folder, "the processor was altered: expected image_mean")


# ---- model files


def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "encoder.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "encoder.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    refuse(folder, "found a link that points outside it")
    (folder / "encoder.onnx").unlink()
    (folder / "encoder.onnx").symlink_to("/dev/zero")
    refuse(folder, "is missing")
    (folder / "encoder.onnx").unlink()
    (folder / "encoder.onnx").mkdir()
    refuse(folder, "is missing")


def test_huge_files_are_not_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_FILE_BYTES", 1000)
    refuse(folder, r"expected at most 1,000 bytes, got")


@pytest.mark.parametrize(("format", "runtime"), RUNS)
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"<xml/>", b"\xff" * 1000, b"PK\x03\x04"])
def test_files_that_are_no_models_are_refused(
    exports: dict[str, Path], tmp_path: Path, format: str, runtime: str, content: bytes
) -> None:
    folder = shutil.copytree(exports[format], tmp_path / "export")
    name = "encoder.onnx" if format == "onnx" else "encoder.xml"
    (folder / name).write_bytes(content)
    rehash(folder, name)
    refuse(folder, name.replace(".", r"\."), runtime)


def test_weights_cut_short_are_refused_by_openvino(exports: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exports["openvino"], tmp_path / "export")
    (folder / "encoder.bin").write_bytes((folder / "encoder.bin").read_bytes()[:100])
    rehash(folder, "encoder.bin")
    refuse(folder, r"encoder\.xml: OpenVINO cannot read it")


def change_onnx(
    folder: Path, change: Callable[[onnx.ModelProto], object], name: str = "encoder.onnx"
) -> None:
    model = onnx.load(folder / name)
    change(model)
    (folder / name).write_bytes(model.SerializeToString())
    rehash(folder, name)


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["forever"], body=body))


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"


def huge(model: onnx.ModelProto) -> None:
    shape = helper.make_tensor("huge", TensorProto.INT64, [2], [2**20, 2**20])
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["huge"], ["zeros"]))


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


def no_output(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = "nothing"
    model.graph.output[0].name = "nothing"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (external, "found tensor .* stored in another file"),
        (loop, "found a subgraph in a node of type 'Loop'"),
        (custom, "found an operator of the domain 'com.evil'"),
        (huge, "tensor 'zeros': expected at most 2,147,483,648 elements"),
        (cycle, "not a valid ONNX graph"),
        (other_input, "encoder.onnx: "),
        (no_output, r"expected the output image_embeddings, got \['nothing'\]"),
    ],
)
def test_graphs_that_saqsam_does_not_write_are_refused(
    folder: Path, change: Callable[[onnx.ModelProto], object], words: str, runtime: str
) -> None:
    change_onnx(folder, change)
    refuse(folder, words, runtime)


def test_a_configuration_of_another_size_does_not_fit_the_files(folder: Path) -> None:
    def shrink(raw: dict[str, Any]) -> None:
        for part in ("vision_config", "prompt_encoder_config"):
            raw["config"][part]["patch_size"] = 16
            raw["config"][part].pop("image_embedding_size", None)

    edit(folder, shrink)
    refuse(
        folder,
        r"decoder\.onnx: expected the input image_embeddings of shape \(1, 32, 4, 4\), got \(None, 32, 8, 8\)",
    )


def test_large_onnx_files_are_not_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_FILE_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"expected at most 1,000 bytes, got"):
        read_onnx(folder / "encoder.onnx")
    with pytest.raises(CheckpointError, match=r"nothing\.onnx: cannot be read: No such file"):
        read_onnx(folder / "nothing.onnx")
