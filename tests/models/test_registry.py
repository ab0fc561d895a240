"""The family of a model is found by its configuration, and unknown kinds are refused by name."""

import pytest
from transformers import Sam3Config

from saqsam.models.registry import FAMILIES, family_of, module_label, structure_of
from saqsam.models.sam.family import SamFamily
from support.tiny_sam import tiny_config


def test_a_sam_belongs_to_its_family() -> None:
    assert isinstance(family_of(tiny_config()), SamFamily)
    assert structure_of(tiny_config()) == SamFamily().structure(tiny_config())


def test_other_models_are_refused_by_their_type() -> None:
    with pytest.raises(
        ValueError,
        match="model_type: expected one of sam, sam_hq, sam2, sam2_video, mobile_sam, got 'sam3'",
    ):
        family_of(Sam3Config())


def test_model_types_belong_to_one_family_each() -> None:
    types = [name for family in FAMILIES for name in family.format.model_types]
    assert len(types) == len(set(types))


def test_unknown_modules_keep_their_names() -> None:
    assert module_label("somewhere.else") == "somewhere.else"
