"""Layouts have the files, names, types and shapes of their clients, and fit no other model."""

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

from saqsam.export import check_export, export_model
from saqsam.export.layouts.catalog import LAYOUTS
from saqsam.runtimes import load_runtime
from saqsam.utils.errors import CheckpointError
from support.published_sizes import published_processor, published_sam
from support.tiny_sam import tiny_processor, tiny_sam

FLOAT, UINT8, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT64
OFFICIAL_INPUTS = [
    ("image_embeddings", FLOAT, ["images", 256, 64, 64]),
    ("point_coords", FLOAT, ["prompts", "points", 2]),
    ("point_labels", FLOAT, ["prompts", "points"]),
    ("mask_input", FLOAT, ["masks", 1, 256, 256]),
    ("has_mask_input", FLOAT, [1]),
    ("orig_im_size", FLOAT, [2]),
]
OFFICIAL_OUTPUTS = [
    ("masks", FLOAT, ["prompts", 1, "height", "width"]),
    ("iou_predictions", FLOAT, ["prompts", 1]),
    ("low_res_masks", FLOAT, ["prompts", 1, 256, 256]),
]
EMBEDDING, EMBEDDINGS = [1, 256, 64, 64], ["images", 256, 64, 64]
CONTRACTS = {
    "samexporter": (
        (
            [("input_image", FLOAT, ["image_height", "image_width", 3])],
            [("image_embeddings", FLOAT, EMBEDDING)],
        ),
        (OFFICIAL_INPUTS, OFFICIAL_OUTPUTS),
    ),
    "osam": (
        ([("x", FLOAT, [1, 3, 1024, 1024])], [("image_embeddings", FLOAT, EMBEDDING)]),
        (
            [
                *OFFICIAL_INPUTS[:3],
                ("mask_input", FLOAT, ["masks", 1, "mask_height", "mask_width"]),
                *OFFICIAL_INPUTS[4:],
            ],
            OFFICIAL_OUTPUTS,
        ),
    ),
    "transformers-js": (
        (
            [("pixel_values", FLOAT, ["images", 3, 1024, 1024])],
            [("image_embeddings", FLOAT, EMBEDDINGS), ("image_positional_embeddings", FLOAT, EMBEDDINGS)],
        ),
        (
            [
                ("input_points", FLOAT, ["images", "prompts", "points", 2]),
                ("input_labels", INT64, ["images", "prompts", "points"]),
                ("image_embeddings", FLOAT, EMBEDDINGS),
                ("image_positional_embeddings", FLOAT, EMBEDDINGS),
            ],
            [
                ("iou_scores", FLOAT, ["images", "prompts", 3]),
                ("pred_masks", FLOAT, ["images", "prompts", 3, 256, 256]),
            ],
        ),
    ),
    "cvat": (
        ([("images", FLOAT, [1, 3, 1024, 1024])], [("embeddings", FLOAT, EMBEDDING)]),
        (
            OFFICIAL_INPUTS,
            [
                ("masks", UINT8, [1, 1, "crop_height", "crop_width"]),
                *OFFICIAL_OUTPUTS[1:],
                *((name, INT64, []) for name in ("xtl", "ytl", "xbr", "ybr")),
            ],
        ),
    ),
}


def interface(values: list[onnx.ValueInfoProto]) -> list[tuple[str, int, list[int | str]]]:
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def test_every_layout_is_listed_here() -> None:
    assert CONTRACTS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", CONTRACTS)
def test_names_types_and_shapes(layout: str, tmp_path: Path) -> None:
    written = export_model(published_sam(), published_processor(), tmp_path / "out", layout=layout)
    for name, (inputs, outputs) in zip(written.files, CONTRACTS[layout], strict=True):
        model = onnx.load(tmp_path / "out" / name)
        assert interface(list(model.graph.input)) == inputs
        assert interface(list(model.graph.output)) == outputs
        onnx.checker.check_model(model, full_check=True)
        assert {entry.key for entry in model.metadata_props} == {"saqsam_checkpoint"}


def test_a_layout_is_an_export_that_saqsam_does_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export_model(tiny_sam(), tiny_processor(), folder, layout="osam")
    assert {path.name for path in folder.iterdir()} == {"encoder.onnx", "decoder.onnx", "export.json"}
    assert json.loads((folder / "export.json").read_text())["single_mask"] is True
    with pytest.raises(CheckpointError, match=r"in the layout 'osam' for other clients.*without a layout"):
        load_runtime(folder)
    export_model(tiny_sam(), tiny_processor(), folder, overwrite=True)
    load_runtime(folder)


def test_families_without_a_contract_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "cvat", dataclasses.replace(LAYOUTS["cvat"], contracts={}))
    words = r"layout cvat: no contract of CVAT for SAM models; choose one of saqsam, osam, transformers-js"
    with pytest.raises(ValueError, match=words):
        export_model(tiny_sam(), tiny_processor(), tmp_path / "out", layout="cvat")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"layout": "samexporte"},
            "layout: expected one of saqsam, samexporter, osam, transformers-js, cvat, got",
        ),
        (
            {"layout": "osam", "format": "openvino"},
            "osam: its clients load onnx files, got the format openvino",
        ),
        ({"layout": "transformers-js", "free_batch": True}, "leave out free_batch, or choose the layout"),
        ({"layout": "cvat", "single_mask": True}, "leave out single_mask, or choose the layout saqsam"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        check_export(**{"format": "onnx", "folder": tmp_path / "out", "overwrite": False, **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("samexporter", "expected image_size 1,024, got 64; choose one of saqsam, osam, transformers-js$"),
        ("cvat", "layout cvat: for CVAT, expected embedding_channels 256, got 32"),
    ],
)
def test_sizes_that_clients_do_not_take_are_refused(tmp_path: Path, layout: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        export_model(tiny_sam(), tiny_processor(), tmp_path / "out", layout=layout)
    assert not list(tmp_path.iterdir())
