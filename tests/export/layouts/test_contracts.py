"""Layouts have the files, names, types and shapes of their clients, and fit no other model."""

import dataclasses
import json
from pathlib import Path

import onnx
import onnxruntime
import pytest

from saqsam.export import check_export, export_model
from saqsam.export.layouts.catalog import LAYOUTS
from saqsam.export.layouts.contract import Context
from saqsam.export.layouts.write import adapted
from saqsam.export.onnx.graph import Graph
from saqsam.models.processing import build_processor
from saqsam.models.registry import family_of
from saqsam.runtimes import load_runtime
from saqsam.utils.errors import CheckpointError
from support.published_sizes import published_mobile_sam, published_sam, published_sam2, published_sam_hq
from support.tiny_sam import tiny_processor, tiny_sam
from support.tiny_sam2 import tiny_sam2, tiny_sam2_processor

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
SAM = {
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

FINEST, FINE = (32, 256, 256), (64, 128, 128)
FEATURES = {"finest": [1, *FINEST], "fine": [1, *FINE], "embedding": EMBEDDING}
BATCHED = {name: ["images", *shape[1:]] for name, shape in FEATURES.items()}
MARKS = [OFFICIAL_INPUTS[1], OFFICIAL_INPUTS[2]]
PIXELS = [1, 3, 1024, 1024]
SAM2 = {
    "samexporter": (
        (
            [("image", FLOAT, PIXELS)],
            [
                ("high_res_feats_0", FLOAT, FEATURES["finest"]),
                ("high_res_feats_1", FLOAT, FEATURES["fine"]),
                ("image_embed", FLOAT, FEATURES["embedding"]),
            ],
        ),
        (
            [
                ("image_embed", FLOAT, BATCHED["embedding"]),
                ("high_res_feats_0", FLOAT, BATCHED["finest"]),
                ("high_res_feats_1", FLOAT, BATCHED["fine"]),
                *MARKS,
                OFFICIAL_INPUTS[3],
                ("has_mask_input", FLOAT, ["flags"]),
            ],
            [
                ("masks", FLOAT, ["prompts", 3, 256, 256]),
                ("iou_predictions", FLOAT, ["prompts", 3]),
            ],
        ),
    ),
    "osam": (
        (
            [("input", FLOAT, PIXELS)],
            [
                ("image_embeddings", FLOAT, FEATURES["embedding"]),
                ("high_res_features1", FLOAT, FEATURES["finest"]),
                ("high_res_features2", FLOAT, FEATURES["fine"]),
            ],
        ),
        (
            [
                ("image_embeddings", FLOAT, BATCHED["embedding"]),
                ("high_res_features1", FLOAT, BATCHED["finest"]),
                ("high_res_features2", FLOAT, BATCHED["fine"]),
                *MARKS,
                ("mask_input", FLOAT, ["masks", 1, "mask_height", "mask_width"]),
                OFFICIAL_INPUTS[4],
                ("orig_im_size", INT64, [2]),
            ],
            [
                ("masks", FLOAT, ["prompts", 4, "height", "width"]),
                ("iou_predictions", FLOAT, ["prompts", 4]),
                ("low_res_masks", FLOAT, ["prompts", 4, 256, 256]),
            ],
        ),
    ),
    "transformers-js": (
        (
            [("pixel_values", FLOAT, ["images", 3, 1024, 1024])],
            [
                ("image_embeddings.0", FLOAT, BATCHED["finest"]),
                ("image_embeddings.1", FLOAT, BATCHED["fine"]),
                ("image_embeddings.2", FLOAT, BATCHED["embedding"]),
            ],
        ),
        (
            [
                ("input_points", FLOAT, ["images", "point_prompts", "points", 2]),
                ("input_labels", INT64, ["images", "label_prompts", "points"]),
                ("input_boxes", FLOAT, ["images", "boxes", 4]),
                ("image_embeddings.0", FLOAT, BATCHED["finest"]),
                ("image_embeddings.1", FLOAT, BATCHED["fine"]),
                ("image_embeddings.2", FLOAT, BATCHED["embedding"]),
            ],
            [
                ("iou_scores", FLOAT, ["images", "prompts", 3]),
                ("pred_masks", FLOAT, ["images", "prompts", 3, 256, 256]),
                ("object_score_logits", FLOAT, ["images", "prompts", 1]),
            ],
        ),
    ),
}
HQ_FEATURES = [1, 32, 256, 256]
SAM_HQ = {
    "samexporter": (
        (
            SAM["samexporter"][0][0],
            [("image_embeddings", FLOAT, EMBEDDING), ("interm_embeddings", FLOAT, HQ_FEATURES)],
        ),
        (
            [*OFFICIAL_INPUTS, ("interm_embeddings", FLOAT, [1, "images", *HQ_FEATURES[1:]])],
            OFFICIAL_OUTPUTS,
        ),
    )
}
FAMILIES = {
    "sam": (published_sam, SAM),
    "mobile_sam": (published_mobile_sam, SAM),
    "sam_hq": (published_sam_hq, SAM_HQ),
    "sam2": (published_sam2, SAM2),
}
CONTRACTS = {
    (family, name): contract
    for family, (_, layouts) in FAMILIES.items()
    for name, contract in layouts.items()
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
    listed = {(family, name) for name, layout in LAYOUTS.items() for family in layout.contracts}
    # The decoder of SAM 3's tracker is that of SAM 2.
    assert {*CONTRACTS, ("sam3_tracker", "transformers-js")} == listed
    both = LAYOUTS["transformers-js"].contracts
    assert both["sam3_tracker"] is both["sam2"]


@pytest.mark.parametrize(("family", "layout"), CONTRACTS)
def test_names_types_and_shapes(family: str, layout: str, tmp_path: Path) -> None:
    model = FAMILIES[family][0]()
    written = export_model(model, build_processor(model.config), tmp_path / "out", layout=layout)
    for name, (inputs, outputs) in zip(written.files, CONTRACTS[family, layout], strict=True):
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


def test_families_without_a_contract_are_refused(tmp_path: Path) -> None:
    words = (
        r"^layout cvat: CVAT cannot load ONNX files of SAM 2 models; "
        r"choose one of saqsam, samexporter, osam, transformers-js$"
    )
    with pytest.raises(ValueError, match=words):
        export_model(tiny_sam2(), tiny_sam2_processor(), tmp_path / "out", layout="cvat")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", SAM2)
def test_sam2_layouts_take_older_opsets(layout: str, tmp_path: Path) -> None:
    written = export_model(tiny_sam2(), tiny_sam2_processor(), tmp_path / "out", layout=layout, opset=17)
    for name in written.files:
        assert onnx.load(tmp_path / "out" / name).opset_import[0].version == 17
        onnxruntime.InferenceSession(tmp_path / "out" / name, providers=["CPUExecutionProvider"])


def test_prompts_are_declared_before_feature_maps() -> None:
    part = LAYOUTS["transformers-js"].contracts["sam2"].decoder
    features_first = dataclasses.replace(part, inputs=part.inputs[::-1])
    config = published_sam2().config
    context = Context(family_of(config).input_spec(config), (), ())
    with pytest.raises(AssertionError, match="points, labels and boxes are declared first"):
        adapted(features_first, Graph("decoder"), context)


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
