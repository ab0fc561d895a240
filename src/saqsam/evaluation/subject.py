"""Models that are evaluated together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import SamModel, SamProcessor

from saqsam.inference.backend import Backend
from saqsam.inference.predictor import Predictor


class Subject:
    """One of the models that are evaluated together.

    Args:
        model: Model or another backend, as for `evaluate`.
        processor: Processor of the model; None builds the one that fits the model.
        prompts_at_once: Prompts per decoder call.
    """

    def __init__(
        self, model: SamModel | Backend, processor: SamProcessor | None, prompts_at_once: int = 16
    ) -> None:
        self.model = model
        self.predictor = Predictor(model, processor, prompts_at_once=prompts_at_once)


@contextmanager
def in_eval_mode(subjects: Sequence[Subject]) -> Iterator[None]:
    """Put the models of all subjects in eval mode while the block runs."""
    models = (subject.model for subject in subjects)
    training = [model for model in models if isinstance(model, nn.Module) and model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()
