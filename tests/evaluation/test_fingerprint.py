"""Fingerprints tell models apart by everything that decides a mask, not by their weights alone."""

from collections.abc import Callable

import pytest
import torch
from transformers import SamConfig, SamImageProcessorPil, SamProcessor

from saqsam.evaluation import PromptTask
from saqsam.evaluation.fingerprint import encoder_identity, model_identity
from saqsam.evaluation.run import evaluate, evaluate_together
from saqsam.evaluation.subject import Subject
from saqsam.inference.predictor import Predictor
from support.tiny_quantized import tiny_data
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam


def with_mean() -> SamProcessor:
    size = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    return SamProcessor(SamImageProcessorPil(**size, image_mean=[0.0, 0.5, 0.9]))


def changed(section: str, **values: object) -> Callable[[], SamConfig]:
    def make() -> SamConfig:
        config = tiny_config()
        for name, value in values.items():
            setattr(getattr(config, section), name, value)
        return config

    return make


def test_equal_models_have_equal_fingerprints() -> None:
    one, other = (Predictor(tiny_sam(), tiny_processor()) for _ in range(2))
    assert model_identity(one) == model_identity(other)
    assert encoder_identity(one) == encoder_identity(other)


@pytest.mark.parametrize(
    ("config", "is_other_encoder"),
    [
        (changed("vision_config", window_size=4), True),
        (changed("vision_config", layer_norm_eps=0.1), True),
        (changed("mask_decoder_config", num_attention_heads=2), False),
    ],
)
def test_settings_without_weights_are_part_of_it(
    config: Callable[[], SamConfig], is_other_encoder: bool
) -> None:
    plain = tiny_sam()
    other = tiny_sam(config=config())
    one, two = (Predictor(model, tiny_processor()) for model in (plain, other))
    assert model_identity(one) != model_identity(two)
    assert (encoder_identity(one) != encoder_identity(two)) == is_other_encoder


def test_the_processor_is_part_of_it() -> None:
    one, two = (Predictor(tiny_sam(), processor) for processor in (tiny_processor(), with_mean()))
    assert model_identity(one) != model_identity(two)
    assert encoder_identity(one) != encoder_identity(two)


@pytest.mark.parametrize("kind", ["processor", "window"])
def test_models_that_encode_differently_do_not_share_embeddings(kind: str) -> None:
    config = changed("vision_config", window_size=4)() if kind == "window" else None
    processor = with_mean() if kind == "processor" else tiny_processor()
    model = tiny_sam(config=config)
    together = evaluate_together(
        [Subject(tiny_sam(), tiny_processor()), Subject(model, processor)], tiny_data(), [PromptTask("box")]
    )
    assert together[1].to_json() == evaluate(model, processor, tiny_data()).to_json()
    assert together[0].to_json() != together[1].to_json()


def test_weights_of_any_dtype_count() -> None:
    one = Predictor(tiny_sam().to(torch.bfloat16), tiny_processor())
    other = Predictor(tiny_sam(seed=1).to(torch.bfloat16), tiny_processor())
    assert len({model_identity(p) for p in (one, other, Predictor(tiny_sam(), tiny_processor()))}) == 3
