"""Samples in memory as a data set."""

import dataclasses
from collections.abc import Sequence

from saqsam.data.types import Sample
from support.tiny_quantized import tiny_data


class Listed:
    """Samples as a data set that notes which of them were asked for."""

    name = "listed"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        return self.samples[index]


def scenes(count: int) -> list[Sample]:
    """Generated scenes with their objects."""
    data = tiny_data(count)
    return [data[i] for i in range(count)]


def without_instances(samples: Sequence[Sample]) -> list[Sample]:
    """Return the same images without labels."""
    return [dataclasses.replace(sample, instances=()) for sample in samples]
