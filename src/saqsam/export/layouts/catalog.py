"""The layouts, one entry each; imports no package of a format, nor torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from saqsam.export.layouts import companions, inputs, outputs, prompts
from saqsam.export.layouts.contract import OWN_LAYOUT, Contract, Input, Layout, Output, Part

if TYPE_CHECKING:
    from saqsam.export.layouts.contract import Context
    from saqsam.export.onnx.graph import Graph, Value  # an extra

_HQ_FEATURES = "hq_features"
_SIZES = {"image_size": 1024, "mask_size": 256}
"""Sizes of the published models of SAM v1, which most clients have in their source."""
_EMBEDDING = Output("image_embeddings", "image_embeddings")


def _official_inputs(
    mask_input: Callable[[Graph, Context, str], Value] | None = None,
) -> tuple[Input, ...]:
    """Return the inputs of the official decoder, with an adapter of the mask."""
    return (
        *(Input(name, name) for name in ("image_embeddings", "point_coords", "point_labels")),
        Input("mask_input", "mask_input", mask_input),
        *(Input(name, name) for name in ("has_mask_input", "orig_im_size")),
    )


_OFFICIAL_OUTPUTS = tuple(Output(name, name) for name in ("masks", "iou_predictions", "low_res_masks"))

_SAMEXPORTER = Contract(
    encoder=Part(
        # Both clients look in their working folder first, so common names could find other files there.
        "{label}.encoder.onnx",
        (Input("input_image", "pixel_values", inputs.unprepared_image),),
        (_EMBEDDING,),
    ),
    decoder=Part("{label}.decoder.onnx", _official_inputs(), _OFFICIAL_OUTPUTS),
    single_mask=True,
    sizes={"channels": 3, **_SIZES},
    write_companions=companions.write_sam_yaml,
)
# X-AnyLabeling stacks all outputs of the encoder but the first, and passes them on as one input.
_SAM_HQ_SAMEXPORTER = replace(
    _SAMEXPORTER,
    encoder=replace(_SAMEXPORTER.encoder, outputs=(_EMBEDDING, Output("interm_embeddings", _HQ_FEATURES))),
    decoder=replace(
        _SAMEXPORTER.decoder,
        inputs=(
            *_official_inputs(),
            Input("interm_embeddings", _HQ_FEATURES, inputs.stacked(_HQ_FEATURES)),
        ),
    ),
    write_companions=companions.write_sam_hq_yaml,
)
_OSAM = Contract(
    encoder=Part("encoder.onnx", (Input("x", "pixel_values"),), (_EMBEDDING,)),
    decoder=Part("decoder.onnx", _official_inputs(inputs.resized_mask), _OFFICIAL_OUTPUTS),
    single_mask=True,
)
_TRANSFORMERS_JS = Contract(
    encoder=Part(
        "onnx/vision_encoder{suffix}.onnx",
        (Input("pixel_values", "pixel_values"),),
        (_EMBEDDING, Output("image_positional_embeddings", "image_positional_embeddings")),
    ),
    decoder=Part(
        "onnx/prompt_encoder_mask_decoder{suffix}.onnx",
        (
            Input("input_points", "point_coords", prompts.batched_points),
            Input("input_labels", "point_labels", prompts.batched_labels),
            Input("image_embeddings", "image_embeddings", inputs.repeated("image_embeddings")),
            Input("image_positional_embeddings", None, inputs.ignored_embeddings),
        ),
        (
            Output("iou_scores", "iou_predictions", outputs.three_scores),
            Output("pred_masks", "low_res_masks", outputs.three_masks),
        ),
        computed={"mask_input": inputs.no_mask, "has_mask_input": inputs.without_mask},
    ),
    single_mask=False,
    free_batch=True,
    write_companions=companions.write_sam_json,
)
_CVAT = Contract(
    encoder=Part(
        "encoder.onnx", (Input("images", "pixel_values"),), (Output("embeddings", "image_embeddings"),)
    ),
    decoder=Part(
        "decoder.onnx",
        _official_inputs(),
        (
            Output("masks", "masks", outputs.cropped_mask),
            *(Output(name, name) for name in ("iou_predictions", "low_res_masks")),
            Output("xtl", "masks", outputs.left),
            Output("ytl", "masks", outputs.top),
            Output("xbr", "masks", outputs.right),
            Output("ybr", "masks", outputs.bottom),
        ),
    ),
    single_mask=True,
    sizes={"embedding_channels": 256, **_SIZES},
)

_FINEST, _FINE = "high_res_features_0", "high_res_features_1"
_SAM2_SAMEXPORTER = Contract(
    encoder=Part(
        "{label}.encoder.onnx",
        (Input("image", "pixel_values"),),
        (
            Output("high_res_feats_0", _FINEST),
            Output("high_res_feats_1", _FINE),
            Output("image_embed", "image_embeddings"),
        ),
    ),
    decoder=Part(
        "{label}.decoder.onnx",
        (
            Input("image_embed", "image_embeddings"),
            Input("high_res_feats_0", _FINEST),
            Input("high_res_feats_1", _FINE),
            Input("point_coords", "point_coords", prompts.padded_points),
            Input("point_labels", "point_labels", prompts.padded_labels),
            Input("mask_input", "mask_input"),
            # samexporter sends one value per prompt, AnyLabeling and X-AnyLabeling send one for all.
            Input("has_mask_input", "has_mask_input", inputs.flag_of_each_mask),
        ),
        (
            Output("masks", "low_res_masks", outputs.three_masks_of_image),
            Output("iou_predictions", "iou_predictions", outputs.three_scores_of_image),
        ),
    ),
    single_mask=False,
    sizes={"channels": 3},
    write_companions=companions.write_sam2_yaml,
)
_SAM2_OSAM = Contract(
    encoder=Part(
        "encoder.onnx",
        (Input("input", "pixel_values"),),
        (_EMBEDDING, Output("high_res_features1", _FINEST), Output("high_res_features2", _FINE)),
    ),
    decoder=Part(
        "decoder.onnx",
        (
            Input("image_embeddings", "image_embeddings"),
            Input("high_res_features1", _FINEST),
            Input("high_res_features2", _FINE),
            Input("point_coords", "point_coords", prompts.padded_points),
            Input("point_labels", "point_labels", prompts.padded_labels),
            Input("mask_input", "mask_input", inputs.resized_mask),
            Input("has_mask_input", "has_mask_input"),
            Input("orig_im_size", "orig_im_size", inputs.integer_size),
        ),
        _OFFICIAL_OUTPUTS,
    ),
    single_mask=False,
)
_LEVELS = {
    "image_embeddings.0": _FINEST,
    "image_embeddings.1": _FINE,
    "image_embeddings.2": "image_embeddings",
}
_SAM2_TRANSFORMERS_JS = Contract(
    encoder=Part(
        "onnx/vision_encoder{suffix}.onnx",
        (Input("pixel_values", "pixel_values"),),
        tuple(Output(name, feature) for name, feature in _LEVELS.items()),
    ),
    decoder=Part(
        "onnx/prompt_encoder_mask_decoder{suffix}.onnx",
        (
            Input("input_points", None, prompts.points_beside_boxes),
            Input("input_labels", None, prompts.labels_beside_boxes),
            Input("input_boxes", None, prompts.boxes),
            *(Input(name, feature, inputs.repeated(feature)) for name, feature in _LEVELS.items()),
        ),
        (
            Output("iou_scores", "iou_predictions", outputs.three_scores),
            Output("pred_masks", "low_res_masks", outputs.three_masks),
            Output("object_score_logits", "object_score_logits", outputs.object_scores),
        ),
        computed={
            "point_coords": prompts.points_and_corners,
            "point_labels": prompts.labels_and_corners,
            "mask_input": inputs.no_mask,
            "has_mask_input": inputs.without_mask,
        },
    ),
    single_mask=False,
    free_batch=True,
    write_companions=companions.write_sam2_json,
)

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "samexporter",
            "AnyLabeling, X-AnyLabeling",
            {
                "sam": _SAMEXPORTER,
                "mobile_sam": _SAMEXPORTER,
                "sam_hq": _SAM_HQ_SAMEXPORTER,
                "sam2": _SAM2_SAMEXPORTER,
            },
        ),
        Layout("osam", "osam, labelme", {"sam": _OSAM, "mobile_sam": _OSAM, "sam2": _SAM2_OSAM}),
        Layout(
            "transformers-js",
            "transformers.js",
            {
                "sam": _TRANSFORMERS_JS,
                "mobile_sam": _TRANSFORMERS_JS,
                "sam2": _SAM2_TRANSFORMERS_JS,
                "sam3_tracker": _SAM2_TRANSFORMERS_JS,
            },
            suffix=companions.transformers_js_suffix,
        ),
        # CVAT runs SAM 2 on its own servers; no release has a decoder for the browser.
        Layout("cvat", "CVAT", {"sam": _CVAT, "mobile_sam": _CVAT}),
    )
}
"""The layouts for other clients by name; `OWN_LAYOUT` is not among them."""
LAYOUT_NAMES = (OWN_LAYOUT, *LAYOUTS)
"""All choices of `--layout`."""
LAYOUT_FORMAT = "onnx"
"""The format of all files in the layouts of other clients."""


def check_layout(layout: str, format: str, *, single_mask: bool, free_batch: bool) -> None:
    """Check that a layout is known and fits the other options; call it before a model is loaded.

    Raises:
        ValueError: It does not.
    """
    if layout not in LAYOUT_NAMES:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUT_NAMES)}, got {layout!r}")
    if layout == OWN_LAYOUT:
        return
    if format != LAYOUT_FORMAT:
        raise ValueError(
            f"layout {layout}: its clients load {LAYOUT_FORMAT} files, got the format {format}; choose the format "
            f"{LAYOUT_FORMAT}, or the layout {OWN_LAYOUT}"
        )
    for option, is_set in (("single_mask", single_mask), ("free_batch", free_batch)):
        if is_set:
            raise ValueError(
                f"layout {layout}: its clients determine the numbers of masks and images; leave out {option}, or "
                f"choose the layout {OWN_LAYOUT}"
            )
