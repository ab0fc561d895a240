"""Content of a report as plain data, from which every rendering is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saqsam.allocation.log import AllocationLog
from saqsam.analysis.inventory import Inventory
from saqsam.evaluation.compare import TaskDifference
from saqsam.evaluation.task import Metrics
from saqsam.ptq.log import AttentionClipping, UnitLog
from saqsam.report.log import Source


@dataclass(frozen=True)
class Picture:
    """Image of a report.

    Attributes:
        data: WebP file.
        width: Width in pixels.
        height: Height in pixels.
        alt: Alternative text.
    """

    data: bytes
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Accuracy:
    """Float and quantized model on the same images and prompts.

    Attributes:
        dataset: Name of the dataset.
        images: Number of images.
        prompt: Kind of prompt.
        quantized: Metrics of the checkpoint.
        float: Metrics of the float model; None without one.
        difference: Paired differences, None without a float model.
    """

    dataset: str
    images: int
    prompt: str
    quantized: Metrics
    float: Metrics | None = None
    difference: TaskDifference | None = None


@dataclass(frozen=True)
class GalleryImage:
    """One image under both models.

    Attributes:
        file_name: File name of the image.
        objects: Number of objects.
        first: Mean IoU of the float model with the truth.
        other: Mean IoU of the quantized model with the truth.
        pictures: `prompts`, `float`, `quantized`, `difference`.
    """

    file_name: str
    objects: int
    first: float
    other: float
    pictures: Mapping[str, Picture]


@dataclass(frozen=True)
class GroupSensitivity:
    """Accuracy drop of one group of layers.

    Attributes:
        name: Name of the part, or of the layer.
        alone: Mean IoU with the float model's masks where only this group is quantized.
        alone_miou: Mean IoU with the truth there.
        without: Mean IoU with the float model's masks where all but this group is quantized.
        without_miou: Mean IoU with the truth there.
    """

    name: str
    alone: float
    alone_miou: float
    without: float
    without_miou: float


@dataclass(frozen=True)
class Sensitivity:
    """Every group of layers quantized alone, and left float alone.

    Attributes:
        dataset: Name of the dataset.
        images: Number of images.
        objects: Number of objects.
        groups: The groups, in the order of computation.
        quantized: Mean IoU of the quantized model's masks with the float model's.
        quantized_miou: Mean IoU of the quantized model with the truth.
        float_miou: Mean IoU of the float model with the truth.
    """

    dataset: str
    images: int
    objects: int
    groups: tuple[GroupSensitivity, ...]
    quantized: float
    quantized_miou: float
    float_miou: float


@dataclass(frozen=True)
class Distribution:
    """Values of one activation in the float model, and the range that its quantizer has.

    Attributes:
        slot: Name of the quantizer.
        part: Part that it belongs to.
        bits: Bits of the quantizer.
        seen: Smallest and largest value over all calibration images.
        range: Smallest and largest value that the quantizer can represent.
        outside: Share of the values outside the range by more than half a step: clipped, not just rounded.
        shares: Share of the values in each of equal steps from the smallest to the largest.
    """

    slot: str
    part: str
    bits: int
    seen: tuple[float, float]
    range: tuple[float, float]
    outside: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Focus:
    """Attention of the mask token in one image.

    Attributes:
        attention: Module name of the attention.
        deviation: 1 - IoU of the float and the quantized model's focus on this image and prompt.
        pictures: `float` and `quantized`.
    """

    attention: str
    deviation: float
    pictures: Mapping[str, Picture]


@dataclass(frozen=True)
class Report:
    """Content of a report.

    Attributes:
        name: Name of the recipe.
        source: Inputs that the checkpoint was made from, names without folders; None where they were not recorded.
        content_sha256: Hash of the checkpoint's content.
        versions: Versions by package; `written by` is that of the checkpoint.
        steps: Steps of the quantization, one sentence each.
        inventory: Bits of each part.
        disk_bytes: Size of the checkpoint's tensors on disk.
        accuracy: Scores; None where nothing was scored.
        gallery: Images, the largest accuracy drop first.
        sensitivity: Sensitivity of each group; None where it was not measured.
        distributions: Activations with static ranges, the largest share outside first.
        clipping: Clipping of each attention.
        focus: Attention of the mask token.
        focus_image: Image and prompt of `focus`.
        signs: Channels that changed sign, by attention.
        units: Learning of each unit.
        left_out: Reason for each missing section, by its name.
        allocation: How a budget chose the bits; None without a budget.
    """

    name: str
    source: Source | None
    content_sha256: str | None
    versions: Mapping[str, str]
    steps: tuple[str, ...]
    inventory: Inventory
    disk_bytes: int
    accuracy: Accuracy | None = None
    gallery: tuple[GalleryImage, ...] = ()
    sensitivity: Sensitivity | None = None
    distributions: tuple[Distribution, ...] = ()
    clipping: tuple[AttentionClipping, ...] = ()
    focus: tuple[Focus, ...] = ()
    focus_image: Picture | None = None
    signs: Mapping[str, int] = field(default_factory=dict)
    units: tuple[UnitLog, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    allocation: AllocationLog | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as plain values."""
        plain: dict[str, Any] = _plain(self)
        plain["inventory"] = self.inventory.to_dict()
        return plain


def _plain(value: Any) -> Any:
    """Return dataclasses as dicts and tuples as lists, without pictures."""
    if isinstance(value, TaskDifference):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {k: _plain(v) for k, v in fields.items() if k not in ("pictures", "focus_image", "inventory")}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
