"""The model card (README.md) of a packed checkpoint: recipe, sizes, usage and scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import SamModel

from saqsam.checkpoint.config import SaqsamConfig
from saqsam.checkpoint.tensors import checkpoint_tensors
from saqsam.models.parts import PARTS
from saqsam.models.registry import family_of
from saqsam.recipes.recipe import Recipe
from saqsam.utils.atomic_write import write_atomic

MODEL_CARD = "README.md"
_GENERATED = "<!-- Written by saqsam, which replaces this file until you remove this line. -->"
_TRANSFORMERS_TEMPLATE = "This model card has been automatically generated"
_METADATA = """---
library_name: saqsam
pipeline_tag: mask-generation
tags:
- saqsam
- segment-anything
- sam
- quantized
- post-training-quantization
---
"""


@dataclass(frozen=True)
class CardScore:
    """A measured score for a model card.

    Attributes:
        dataset: Name of the dataset, such as ``COCO val2017``.
        metric: Name of the metric, such as ``mean IoU, box prompts``.
        value: The score.
        low: Lower end of its 95 % confidence interval; None if it was not computed.
        high: Upper end.
    """

    dataset: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None


def model_card(model: SamModel, scores: Sequence[CardScore] = (), *, name: str | None = None) -> str:
    """Return the text of a model card in Markdown, preceded by the hub's metadata.

    Args:
        model: A quantized model.
        scores: Measured scores; without any, the card says that there are none.
        name: Repository on the hub, ``owner/name``, for the usage example.
    """
    return "\n".join([f"{_METADATA}{_GENERATED}", *_lines(model, scores, name)]) + "\n"


def write_model_card(folder: Path, model: SamModel, *, name: str | None = None) -> None:
    """Write the model card of a checkpoint folder, unless the folder has a hand-written one.

    The scores are taken from `model.evaluation_scores`.
    """
    path = folder / MODEL_CARD
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        if _GENERATED not in text and _TRANSFORMERS_TEMPLATE not in text:
            return
    write_atomic(path, model_card(model, model.evaluation_scores, name=name).encode())


def _lines(model: SamModel, scores: Sequence[CardScore], name: str | None) -> Iterator[str]:
    config: SaqsamConfig = model.config.quantization_config
    recipe = Recipe.from_dict(config.recipe)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint_tensors(model).values())
    parameters = model.num_parameters()
    family = family_of(model.config)
    yield f"\n# {family.label}, quantized: {recipe.name}\n"
    yield (
        "A Segment Anything Model with packed low-bit weights, made by post-training quantization with "
        f"saqsam {config.saqsam_version}.\n"
    )
    yield "| | |\n|---|---|"
    yield f"| weights | {recipe.weights.bits} bits, {_granularity(recipe)} |"
    activations = recipe.activations
    yield f"| activations | {'float' if activations is None else f'{activations.bits} bits'} |"
    has_positions = family.structure(model.config).position_embedding is not None
    for part, bits in sorted(recipe.extra.items()):
        if part == "position_embedding" and not has_positions:
            continue
        yield f"| {part} | {bits} bits |"
    for part, override in sorted(recipe.overrides.items()):
        # A group, such as `decoder`, has no bits of its own: a longer override may change some of its parts.
        weights, inputs = recipe.bits_of(part) if part in PARTS else (override.weights, override.activations)
        widths = [
            f"weights {weights} bits" if weights else "",
            f"activations {inputs} bits" if inputs else "",
        ]
        yield f"| {part} | {', '.join(width for width in widths if width)} |"
    yield f"| parameters | {parameters:,} |"
    yield f"| tensors | {stored / 1e6:.2f} MB; {4 * parameters / 1e6:.2f} MB in float32 |"
    yield f"| input | {family.input_spec(model.config).image_size} px |"
    yield f"| content hash | `{config.content_sha256}` |"
    yield "\n## Load it\n"
    yield from _usage(name or "path/to/this/folder")
    yield "\n## Scores\n"
    yield from _scores(scores)
    yield f"\n## Recipe\n\n```json\n{json.dumps(config.recipe, indent=2, sort_keys=True)}\n```"


def _granularity(recipe: Recipe) -> str:
    size = recipe.weights.group_size
    return "one scale per output channel" if size is None else f"one scale per group of {size} inputs"


def _usage(name: str) -> Iterator[str]:
    source = json.dumps(name)
    yield "```python"
    yield "import saqsam\n"
    yield f"model, processor = saqsam.load({source})"
    yield "```\n"
    yield "After `import saqsam`, transformers loads it too:\n"
    yield "```python"
    yield "from transformers import AutoModelForMaskGeneration, AutoProcessor\n"
    yield f"model = AutoModelForMaskGeneration.from_pretrained({source})"
    yield f"processor = AutoProcessor.from_pretrained({source})"
    yield "```"


def _scores(scores: Sequence[CardScore]) -> Iterator[str]:
    if not scores:
        yield "None were given when this card was written. `saqsam evaluate` measures them."
        return
    yield "| dataset | metric | score | 95 % interval |\n|---|---|---:|---|"
    for score in scores:
        interval = "not computed"
        if score.low is not None and score.high is not None:
            interval = f"{score.low:.4g} to {score.high:.4g}"
        yield f"| {_cell(score.dataset)} | {_cell(score.metric)} | {score.value:.4g} | {interval} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
