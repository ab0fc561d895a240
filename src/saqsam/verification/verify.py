"""Verify an export: compare the masks of its runtimes with torch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import SamModel, SamProcessor

from saqsam.data.types import Dataset
from saqsam.evaluation.simulated_prompts import box_prompts
from saqsam.export.manifest import Manifest, parse_manifest
from saqsam.inference.backend import Backend
from saqsam.inference.processing import preprocess
from saqsam.inference.prompts import Prompts
from saqsam.runtimes.loading import load_runtime
from saqsam.runtimes.registry import check_runtime, default_runtime, installed_runtimes
from saqsam.utils.errors import shorten_message
from saqsam.utils.progress import Progress, renamed
from saqsam.verification.divergence import Divergence, find_divergence
from saqsam.verification.parity import (
    Parity,
    ParityError,
    TorchReference,
    compare_with_torch,
    parity_prompts,
)

MIN_PARITY = 0.95
"""Mean IoU with torch's masks below which an export fails by default."""
MAX_DIFFERENCE = 0.5
"""Relative difference from torch's logits above which an export fails regardless of its masks: empty masks, and masks
that fill the image, have a high IoU with others like them. Sound runtimes stay ten times below."""


def verify_export(
    folder: str | Path,
    model: SamModel,
    processor: SamProcessor,
    dataset: Dataset,
    *,
    min_parity: float = MIN_PARITY,
    runtimes: Sequence[str] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Parity]:
    """Compare an exported folder with torch in each runtime, and fail if one computes other masks.

    Args:
        folder: Folder that `export_model` wrote.
        model: Model that was exported.
        processor: Processor of the model.
        dataset: Images with objects, which are segmented from their boxes.
        min_parity: Lowest accepted mean IoU between a runtime's masks and torch's, in [0, 1]. Pixels that torch
            leaves undecided are not counted; see `Parity.decided_iou`. Above 0, logits may not differ by more than
            `MAX_DIFFERENCE`.
        runtimes: Runtimes to judge; None for all that are installed and run the folder's format.
        limit: Use the first `limit` images only.
        progress: Progress callback; its phases are the runtimes, its steps the images.

    Returns:
        The differences of each runtime by name, the default runtime of the format first.

    Raises:
        ParityError: A runtime cannot run the folder, returns NaN or infinity, or computes other masks. The message
            names the first node that differs.
        ValueError: `min_parity` is not in [0, 1], a runtime is unknown or missing, or there is no object to segment.
    """
    folder = Path(folder)
    manifest = parse_manifest(folder)
    names = runtimes_to_judge(manifest.format, runtimes, min_parity)
    reference = TorchReference(model, processor, dataset, single_mask=manifest.single_mask, limit=limit)
    parities = {}
    for name in names:
        try:
            backend, own_processor = load_runtime(folder, name, device="cpu")
        except ValueError as error:
            if runtimes is not None or len(names) == 1:
                raise
            raise ParityError(
                f"{name} cannot run the export: {shorten_message(error)}; to export for one runtime alone, "
                f"name it: {default_runtime(manifest.format)}"
            ) from error
        try:
            parity = compare_with_torch(
                backend, own_processor, reference, progress=renamed(progress, f"comparing {name} with torch")
            )
            _judge(parity, min_parity)
        except ParityError as error:
            divergence = _locate(folder, backend, manifest, name, model, processor, dataset)
            raise ParityError(f"{name}: {error}; {divergence}") from error
        parities[name] = parity
        del backend  # before the next runtime loads the weights too
    return parities


def _judge(parity: Parity, min_parity: float) -> None:
    """Raise ParityError if masks differ by more than is accepted; a parity of 0 accepts all."""
    if parity.decided_iou < min_parity:
        raise ParityError(
            f"expected masks with a mean IoU of at least {min_parity:g} (min_parity) with torch's, got "
            f"{parity.decided_iou:.3f}"
        )
    (logits,) = (tensor for tensor in parity.tensors if tensor.name == "low_res_masks")
    if min_parity > 0 and logits.relative > MAX_DIFFERENCE:
        raise ParityError(
            f"expected logits that differ from torch's by at most {MAX_DIFFERENCE:g} of their norm, got "
            f"{logits.relative:.2g}"
        )


def runtimes_to_judge(
    format: str, runtimes: Sequence[str] | None = None, min_parity: float = MIN_PARITY
) -> list[str]:
    """Return the runtimes that `verify_export` judges, the default of the format first; call it before an export.

    Raises:
        ValueError: As for `verify_export`.
    """
    if not 0 <= min_parity <= 1:
        raise ValueError(f"min_parity: expected a number from 0 to 1, got {min_parity:g}")
    own = default_runtime(format)
    names = (installed_runtimes(format) or [own]) if runtimes is None else list(runtimes)
    for name in names:
        check_runtime(name, format)
    return sorted(names, key=lambda name: name != own)


def parity_content(parities: Mapping[str, Parity], min_parity: float) -> dict[str, Any]:
    """Return the content of `parity.json`: differences of the default runtime, and of the others."""
    (own, parity), *others = parities.items()
    return {
        "min_parity": min_parity,
        "runtime": own,
        **parity.to_dict(),
        "other_runtimes": {name: other.to_dict() for name, other in others},
    }


def _locate(
    folder: Path,
    backend: Backend,
    manifest: Manifest,
    runtime: str,
    model: SamModel,
    processor: SamProcessor,
    dataset: Dataset,
) -> Divergence:
    """Find the first node that differs on the first image that has objects."""
    samples = (dataset[index] for index in range(len(dataset)))
    image, boxes = next(
        (sample.image, box_prompts(objects))
        for sample in samples
        if (objects := [instance for instance in sample.instances if not instance.is_crowd])
    )
    pixels, size = preprocess(processor, image)
    by_kind = parity_prompts(boxes, image.shape[:2], single_mask=manifest.single_mask)
    prompts = Prompts.from_image(image.shape[:2], size, **by_kind, mask_size=(0, 0))
    return find_divergence(folder, backend, manifest, runtime, model, pixels, prompts)
