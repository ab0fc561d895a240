"""SAM 3's tracker from every place where its weights live: folders of the image model and of both video models."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
    Sam3TrackerVideoModel,
    Sam3VideoConfig,
    Sam3VideoModel,
)

import saqsam
from saqsam.models.sam3_tracker.configuration import (
    check_sam3_tracker_config,
    count_parameters,
    parse_sam3_tracker_config,
    sam3_tracker_fields,
)
from saqsam.models.sam3_tracker.family import Sam3TrackerFamily
from saqsam.utils.errors import CheckpointError
from support.tiny_sam3_tracker import (
    tiny_sam3_tracker,
    tiny_sam3_tracker_config,
    tiny_sam3_tracker_pixels,
    tiny_sam3_tracker_processor,
)

RAW: dict[str, Any] = json.loads(tiny_sam3_tracker_config().to_json_string(use_diff=False))
BACKBONE = "vision_config.backbone_config"


def changed(path: str, value: object) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(RAW))
    *parents, name = path.split(".")
    section = raw
    for parent in parents:
        section = section[parent]
    section[name] = value
    return raw


def same_masks(one: Sam3TrackerModel, other: Sam3TrackerModel) -> None:
    with torch.inference_mode():
        outputs = [
            model(
                pixel_values=tiny_sam3_tracker_pixels(), input_boxes=torch.tensor([[[9.0, 9.0, 90.0, 80.0]]])
            )
            for model in (one, other)
        ]
    assert torch.equal(outputs[0].pred_masks, outputs[1].pred_masks)


def load_silently(path: Path) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return saqsam.load(path)


# Folders


@pytest.mark.parametrize("all_levels", [True, False])
def test_a_folder_of_the_image_model(tmp_path: Path, all_levels: bool) -> None:
    tiny_sam3_tracker(all_levels=all_levels).save_pretrained(tmp_path)
    tiny_sam3_tracker_processor().save_pretrained(tmp_path)
    model, processor = load_silently(tmp_path)
    same_masks(model, tiny_sam3_tracker())
    assert isinstance(processor, Sam3TrackerProcessor)
    settings = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    assert settings["image_processor_type"] == "Sam3ImageProcessor"
    assert settings["image_mean"] == settings["image_std"] == [0.5, 0.5, 0.5]
    model.save_pretrained(tmp_path / "again")
    same_masks(load_silently(tmp_path / "again")[0], model)
    same_masks(AutoModel.from_pretrained(tmp_path / "again"), model)


def test_names_of_modules_are_read_as_well(tmp_path: Path) -> None:
    tiny_sam3_tracker().save_pretrained(tmp_path, save_original_format=False)
    assert Sam3TrackerFamily.format.anchor in load_file(tmp_path / "model.safetensors")
    same_masks(load_silently(tmp_path)[0], tiny_sam3_tracker())


def video_model(*, with_detector: bool) -> Sam3VideoModel | Sam3TrackerVideoModel:
    """Return a tiny video model with the weights of the tiny tracker."""
    small = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    text = {
        "model_type": "clip_text_model",
        **{"hidden_size": 32, "intermediate_size": 32, "projection_dim": 32, "num_hidden_layers": 1},
        **{"vocab_size": 64, "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2},
    }
    sections = {
        name: {key: value for key, value in RAW[name].items() if key not in ("model_type", "architectures")}
        for name in ("prompt_encoder_config", "mask_decoder_config")
    }
    memory = {
        **{"memory_attention_hidden_size": 32, "memory_attention_num_layers": 1},
        **{"memory_attention_feed_forward_hidden_size": 32, "memory_attention_rope_feat_sizes": [8, 8]},
        **{"memory_encoder_hidden_size": 32, "memory_encoder_output_channels": 16},
        **{"memory_fuser_embed_dim": 32, "memory_fuser_intermediate_dim": 32, "memory_fuser_num_layers": 1},
        "mask_downsampler_embed_dim": 32,
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        **{"vision_config": RAW["vision_config"], "image_size": 112, **sections, **memory},
    }
    config = Sam3VideoConfig(
        detector_config={
            "model_type": "sam3",
            **{"vision_config": RAW["vision_config"], "text_config": text},
            **{f"{name}_config": small for name in ("geometry_encoder", "detr_encoder", "detr_decoder")},
            "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 4},
        },
        tracker_config=tracker,
    )
    video = Sam3VideoModel(config) if with_detector else Sam3TrackerVideoModel(config.tracker_config)
    tensors = {}
    for name, value in tiny_sam3_tracker(all_levels=True).state_dict().items():
        if with_detector and name.startswith("vision_encoder.backbone."):
            name = f"detector_model.{name}"
        elif with_detector and name.startswith("vision_encoder.neck."):
            name = name.replace("vision_encoder.neck.", "tracker_neck.")
        elif with_detector:
            name = f"tracker_model.{name}"
        tensors[name] = value
    assert not video.load_state_dict(tensors, strict=False).unexpected_keys
    return video


@pytest.mark.parametrize("original_format", [True, False])
@pytest.mark.parametrize("with_detector", [True, False])
def test_the_tracker_of_a_video_model_is_read_for_images(
    tmp_path: Path, with_detector: bool, original_format: bool
) -> None:
    video_model(with_detector=with_detector).save_pretrained(tmp_path, save_original_format=original_format)
    model_type = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert model_type == ("sam3_video" if with_detector else "sam3_tracker_video")
    model, processor = load_silently(tmp_path)  # detector and memory are dropped without a warning
    assert isinstance(model, Sam3TrackerModel)
    assert isinstance(processor, Sam3TrackerProcessor)
    same_masks(model, tiny_sam3_tracker())


def test_a_missing_tensor_and_an_unknown_one_are_named(tmp_path: Path) -> None:
    tiny_sam3_tracker().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["tracker_model.tracker_neck.fpn_layers.1.proj2.bias"]
    tensors["tracker_model.mask_decoder.extra"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    missing = r"1 missing: vision_encoder\.neck\.fpn_layers\.1\.proj2\.bias; 1 unknown: mask_decoder\.extra"
    with pytest.raises(CheckpointError, match=missing) as error:
        saqsam.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_without_a_configuration_must_be_of_the_published_size(tmp_path: Path) -> None:
    save_file(tiny_sam3_tracker().state_dict(), tmp_path / "tracker.safetensors")
    with pytest.raises(CheckpointError, match=r"published SAM 3, 1024 and 32, got 32 and 4"):
        saqsam.load(tmp_path / "tracker.safetensors")


def test_the_detector_is_refused_by_name(tmp_path: Path) -> None:
    tiny_sam3_tracker().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3"}))
    with pytest.raises(
        CheckpointError, match=r"this is a SAM 3 checkpoint; saqsam supports .*SAM 3's tracker"
    ):
        saqsam.load(tmp_path)


def test_a_resized_model_is_one_of_that_configuration(tmp_path: Path) -> None:
    tiny_sam3_tracker().save_pretrained(tmp_path)
    model, processor = saqsam.load(tmp_path, image_size=42)  # 3 patches per side, fewer than a window has
    config = tiny_sam3_tracker_config()
    config.vision_config.backbone_config.image_size = config.prompt_encoder_config.image_size = 42
    config.vision_config.backbone_feature_sizes = [[12, 12], [6, 6], [3, 3]]
    reference = tiny_sam3_tracker(config=config)
    assert processor.image_processor.size["height"] == 42
    pixels, box = tiny_sam3_tracker_pixels()[..., :42, :42], torch.tensor([[[2.0, 3.0, 30.0, 34.0]]])
    with torch.inference_mode():
        found, expected = (one(pixel_values=pixels, input_boxes=box) for one in (model, reference))
    assert found.pred_masks.shape[-1] == 12
    assert torch.equal(found.pred_masks, expected.pred_masks)
    with pytest.raises(ValueError, match="image_size: expected a multiple of 14 from 14 to 3584"):
        saqsam.load(tmp_path, image_size=100)


# Configurations


def test_a_configuration_survives_parsing() -> None:
    config = parse_sam3_tracker_config(RAW, "config.json")
    assert sam3_tracker_fields(config) == sam3_tracker_fields(tiny_sam3_tracker_config())
    check_sam3_tracker_config(config, "config.json")
    check_sam3_tracker_config(tiny_sam3_tracker_config(), "config.json")
    assert json.loads(json.dumps(sam3_tracker_fields(config))) == sam3_tracker_fields(config)


def test_the_default_configuration_is_the_published_model() -> None:
    config = parse_sam3_tracker_config({}, "config.json")
    assert sam3_tracker_fields(config) == sam3_tracker_fields(Sam3TrackerConfig())
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Sam3TrackerFamily().build(config).parameters())
    assert parameters / 1e6 == pytest.approx(457.4, abs=0.1)
    assert count_parameters(config) == pytest.approx(parameters, rel=0.01)


def test_the_base_of_rotations_of_earlier_files() -> None:
    raw = changed(f"{BACKBONE}.rope_theta", 500.0)
    del raw["vision_config"]["backbone_config"]["rope_parameters"]
    config = parse_sam3_tracker_config(raw, "config.json")
    assert config.vision_config.backbone_config.rope_parameters == {"rope_theta": 500.0, "rope_type": "axial"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prompt_encoder_config.image_size", 126, "image_size is 112 but prompt_encoder_config's is 126"),
        ("prompt_encoder_config.patch_size", 16, "patch_size is 14 but prompt_encoder_config's is 16"),
        ("prompt_encoder_config.num_point_embeddings", 5, "num_point_embeddings: expected 4"),
        ("mask_decoder_config.num_hidden_layers", 3, "num_hidden_layers: expected 2"),
        ("mask_decoder_config.hidden_size", 64, "fpn_hidden_size is 32 but"),
        ("vision_config.scale_factors", [2.0, 1.0, 0.5], "scale_factors: expected [4.0, 2.0, 1.0]"),
        ("vision_config.backbone_feature_sizes", [[16, 16]] * 3, "backbone_feature_sizes: expected"),
        (f"{BACKBONE}.image_size", [112, 98], "image_size: expected an integer"),
        (f"{BACKBONE}.image_size", 2**20, "image_size: expected an integer"),
        (f"{BACKBONE}.num_attention_heads", 3, "expected a divisor"),
        (f"{BACKBONE}.num_attention_heads", 16, "expected heads of a multiple of 4 channels"),
        (f"{BACKBONE}.window_size", 0, "window_size: expected an integer from 1"),
        (f"{BACKBONE}.window_size", 65, "window_size: expected at most 64 for 8 patches per side"),
        (f"{BACKBONE}.pretrain_image_size", 7, "pretrain_image_size: expected from 14"),
        (f"{BACKBONE}.global_attn_indexes", [-1], "global_attn_indexes: expected"),
        (f"{BACKBONE}.rope_parameters", {"rope_type": "yarn"}, "rope_type: expected one of axial"),
        (f"{BACKBONE}.rope_parameters", [1], "rope_parameters: expected a JSON object"),
        (f"{BACKBONE}.num_channels", 4, "num_channels: expected 3"),
        (f"{BACKBONE}.hidden_act", "none", "hidden_act: expected one of"),
        (f"{BACKBONE}.intermediate_size", 10**9, "intermediate_size: expected"),
    ],
)
def test_wrong_configurations_are_refused_by_their_field(path: str, value: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")) as error:
        parse_sam3_tracker_config(changed(path, value), "config.json")
    assert "\n" not in str(error.value)


def test_sizes_that_patches_do_not_divide_are_refused() -> None:
    raw = changed("prompt_encoder_config.image_size", 120)
    raw["vision_config"]["backbone_config"]["image_size"] = 120
    with pytest.raises(CheckpointError, match="image_size: expected a multiple of the patch size of 14"):
        parse_sam3_tracker_config(raw, "config.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{BACKBONE}.intermediate_size", 40),
        (f"{BACKBONE}.layer_norm_eps", 1e-5),
        (f"{BACKBONE}.window_size", 3),
        (f"{BACKBONE}.global_attn_indexes", [3]),
        (f"{BACKBONE}.rope_parameters", {"rope_theta": 100.0}),
        ("prompt_encoder_config.scale", 2),
        ("mask_decoder_config.dynamic_multimask_stability_delta", 0.1),
    ],
)
def test_what_changes_a_mask_is_a_field(path: str, value: object) -> None:
    fields = sam3_tracker_fields(parse_sam3_tracker_config(changed(path, value), ""))
    assert fields != sam3_tracker_fields(tiny_sam3_tracker_config())


def test_other_processors_are_refused(tmp_path: Path) -> None:
    tiny_sam3_tracker().save_pretrained(tmp_path)
    for content, message in (
        ({"image_processor_type": "SamImageProcessor"}, "expected Sam2ImageProcessor, got 'SamImage"),
        ({"size": {"height": 64, "width": 64}}, "expected images of 112 px as in config.json, got 64x64"),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            saqsam.load(tmp_path)
    # A file that leaves out the statistics has those of SAM 3.
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 112, "width": 112}}))
    assert saqsam.load(tmp_path)[1].image_processor.image_mean == (0.5, 0.5, 0.5)


def test_indexes_of_layers_that_do_not_exist_change_nothing() -> None:
    layers = RAW["vision_config"]["backbone_config"]["num_hidden_layers"]
    used = RAW["vision_config"]["backbone_config"]["global_attn_indexes"]
    raw = changed(f"{BACKBONE}.global_attn_indexes", [layers + 2, *reversed(used)])
    assert sam3_tracker_fields(parse_sam3_tracker_config(raw, "")) == sam3_tracker_fields(
        tiny_sam3_tracker_config()
    )
