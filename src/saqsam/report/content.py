"""What a report says, as plain data: all renderings are of this, and figures are computed nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saqsam.analysis.inventory import Inventory
from saqsam.evaluation.compare import TaskDifference
from saqsam.evaluation.task import Metrics
from saqsam.ptq.log import AttentionClipping, UnitLog
from saqsam.report.log import Source


@dataclass(frozen=True)
class Picture:
    """An image of the report.

    Attributes:
        data: WebP.
        width: Pixels.
        height: Pixels.
        alt: What there is to see, in words.
    """

    data: bytes
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Accuracy:
    """Float and quantized model on the same images and prompts.

    Attributes:
        dataset: Name of the data set.
        images: How many images.
        prompt: What they were asked with.
        quantized: Figures of the checkpoint.
        float: Figures of the float model, None without one.
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
        file_name: Its file.
        objects: How many objects.
        first: Mean IoU with the truth of the float model.
        other: The same of the quantized one.
        pictures: `prompts`, `float`, `quantized`, `difference`.
    """

    file_name: str
    objects: int
    first: float
    other: float
    pictures: Mapping[str, Picture]


@dataclass(frozen=True)
class GroupSensitivity:
    """What one group of layers costs.

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
        dataset: Name of the data set.
        images: How many images it was measured on.
        objects: How many objects.
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
        bits: Its bits.
        seen: Smallest and largest value over all calibration images.
        range: Smallest and largest value that the quantizer gives.
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
    """Where a mask token looks in one image.

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
    """All that a report says.

    Attributes:
        name: Name of the recipe.
        source: What the checkpoint was made of, names without folders; None where it was not noted.
        content_sha256: Hash of the checkpoint's content.
        versions: Versions by package; `written by` is that of the checkpoint.
        steps: How it was quantized, in sentences.
        inventory: What is quantized to how many bits.
        disk_bytes: What the checkpoint's tensors take on disk.
        accuracy: None where nothing was scored.
        gallery: Images, the largest loss first.
        sensitivity: None where it was not measured.
        distributions: Of all activations with static ranges, the largest share outside first.
        clipping: What was clipped.
        focus: Where mask tokens look.
        focus_image: The image and prompt of `focus`.
        signs: Channels that changed sign, by attention.
        units: How the learning of each unit went.
        left_out: Sections that are not there, and why.
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

    def to_dict(self) -> dict[str, Any]:
        """All but the pictures as plain values."""
        plain: dict[str, Any] = _plain(self)
        plain["inventory"] = self.inventory.to_dict()
        return plain


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, without pictures."""
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
