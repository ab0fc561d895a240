"""Validation of `processor_config.json`."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saqsam.inference.processing import preprocess
from saqsam.models.processing import (
    build_processor,
    load_processor,
    parse_processor,
    processor_fields,
)
from saqsam.models.processors.settings import MAX_PIXEL
from saqsam.utils.errors import CheckpointError
from support.json_values import is_short_line, json_values
from support.tiny_sam import tiny_config, tiny_processor

CONFIG = tiny_config()
FLAT: dict[str, Any] = json.loads(tiny_processor().image_processor.to_json_string())
NAMES = sorted(FLAT)
PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def changed(**values: object) -> dict[str, Any]:
    return {"image_processor": copy.deepcopy(FLAT) | values, "processor_class": "SamProcessor"}


@pytest.mark.parametrize("raw", [FLAT, changed(), changed(image_processor_type="SamImageProcessorFast")])
def test_nested_and_flat_files_are_the_same(raw: dict[str, Any]) -> None:
    processor = parse_processor(raw, CONFIG, "processor_config.json")
    assert processor_fields(processor) == processor_fields(tiny_processor())
    ours, theirs = (preprocess(p, PICTURE)[0] for p in (processor, tiny_processor()))
    assert torch.equal(ours, theirs)


@settings(max_examples=300)
@given(st.sampled_from(NAMES), json_values)
def test_any_value_gives_finite_pixels_or_one_line(name: str, value: object) -> None:
    try:
        processor = parse_processor(changed(**{name: value}), CONFIG, "processor_config.json")
    except CheckpointError as error:
        message = str(error)
        assert is_short_line(message, "processor_config.json: ")
    else:
        pixels, _ = preprocess(processor, PICTURE)
        assert pixels.shape == (1, 3, 64, 64)
        assert pixels.abs().max() <= MAX_PIXEL


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rescale_factor": "a"}, "rescale_factor: expected a number"),
        ({"rescale_factor": 0}, "rescale_factor: expected a number"),
        ({"image_std": [1, 1, 0]}, "image_std: expected three numbers"),
        ({"image_std": [1e-5] * 3}, "expected normalized pixels of at most 10000"),
        ({"image_mean": [0.5, 0.5]}, "image_mean: expected three numbers"),
        ({"image_mean": 0.5}, "image_mean: expected three numbers"),
        ({"resample": 6}, "resample: expected one of Pillow's filters"),
        ({"resample": True}, "resample: expected one of Pillow's filters"),
        ({"do_normalize": 1}, "do_normalize: expected true or false"),
        ({"do_resize": False}, "do_resize: expected true"),
        ({"do_pad": False}, "do_pad: expected true"),
        ({"do_center_crop": True}, "do_center_crop: expected false"),
        ({"size": {"height": 64, "width": 64}}, r"size: expected \{longest_edge\}"),
        ({"size": 64}, r"size: expected \{longest_edge\}"),
        ({"size": {"longest_edge": 48}}, "expected images of 64 px as in config.json, got longest edge 48"),
        ({"pad_size": {"height": 64, "width": 48}}, "padded to 64x48"),
        ({"image_processor_type": "CLIPImageProcessor"}, "expected SamImageProcessor, got 'CLIP"),
        ({"image_processor_type": [[]]}, "expected SamImageProcessor"),
    ],
)
def test_wrong_fields_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_processor(changed(**values), CONFIG, "processor_config.json")


@pytest.mark.parametrize(
    "raw", [{}, {"image_processor": 7}, {"image_processor": {}}, {"image_processor": None}]
)
def test_a_file_without_settings_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="expected"):
        parse_processor(raw, CONFIG, "processor_config.json")


@pytest.mark.parametrize(
    "values",
    [
        {"image_mean": [0.4, 0.4, 0.4]},
        {"image_std": [0.4, 0.4, 0.4]},
        {"rescale_factor": 0.01},
        {"resample": 3},
        {"do_rescale": False},
        {"do_normalize": False},
    ],
)
def test_fields_cover_whatever_changes_pixels(values: dict[str, object]) -> None:
    processor = parse_processor(changed(**values), CONFIG, "")
    assert not torch.equal(preprocess(processor, PICTURE)[0], preprocess(tiny_processor(), PICTURE)[0])
    fields = processor_fields(processor)
    assert fields != processor_fields(tiny_processor())
    assert json.loads(json.dumps(fields)) == fields


def test_fields_ignore_sizes_of_label_masks() -> None:
    processor = parse_processor(changed(mask_size={"longest_edge": 3}, image_mean=None), CONFIG, "")
    assert processor_fields(processor) == processor_fields(build_processor(CONFIG))


def test_built_processor_is_the_default(tmp_path: Path) -> None:
    assert processor_fields(load_processor(tmp_path, CONFIG)) == processor_fields(build_processor(CONFIG))


def test_the_nested_file_decides_where_there_are_two(tmp_path: Path) -> None:
    flat, nested = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    flat.write_text(json.dumps(FLAT | {"image_mean": [0, 0, 0]}))
    assert processor_fields(load_processor(tmp_path, CONFIG))["image_mean"] == [0, 0, 0]
    nested.write_text(json.dumps({"processor_class": "SamProcessor"}))  # settings are in the other file
    assert processor_fields(load_processor(tmp_path, CONFIG))["image_mean"] == [0, 0, 0]
    nested.write_text(json.dumps(changed()))
    assert processor_fields(load_processor(tmp_path, CONFIG)) == processor_fields(tiny_processor())
