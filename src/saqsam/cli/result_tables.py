"""Tables that the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from saqsam.allocation.allocate import Allocation
from saqsam.analysis.inventory import Inventory, mac_width
from saqsam.cli.terminal import print_table, result_table, say
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.types import Dataset
from saqsam.evaluation.results import Evaluation
from saqsam.evaluation.task import Task
from saqsam.export import Manifest
from saqsam.models.parts import PAPER_PARTS, PART_LABELS
from saqsam.recipes.deployment import substitutions
from saqsam.recipes.recipe import Recipe
from saqsam.runtimes.registry import TORCH_INTEGER
from saqsam.runtimes.torch_integer import IntegerLayers, Speed
from saqsam.utils.counts import count_phrase
from saqsam.verification.parity import Parity


def print_summary(
    inventory: Inventory, folder: Path, scores: tuple[Evaluation, Evaluation] | None = None
) -> None:
    """Print the size of a checkpoint beside that of the float model and, with scores of both, their mean IoU."""
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    table = result_table(inventory.name, "float32", "quantized", "", right=3)
    ratio = f"{inventory.float32_bytes / on_disk:.2f}x smaller"
    table.add_row("size on disk", _megabytes(inventory.float32_bytes), _megabytes(on_disk), ratio)
    if scores is not None:
        before, _ = scores
        one, other = (result.metrics["prompt"]["miou"] or 0.0 for result in scores)
        table.add_row("mean IoU, box prompts", f"{one:.4f}", f"{other:.4f}", f"{other - one:+z.4f}")
    print_table(table)
    if scores is not None:
        say(
            f"scored on {count_phrase(int(before.metrics['prompt']['instances'] or 0), 'objects')} "
            f"in {count_phrase(before.images, 'images')} of {before.dataset}"
        )
        print_skipped(before.skipped, before.notes)


def print_evaluation(
    result: Evaluation,
    tasks: Sequence[Task],
    model: str,
    recipe: str,
    inventory: Inventory | None,
    dataset: Dataset,
) -> None:
    """Print the metrics of each task for one model and, of a checkpoint, its shares of bytes and MACs."""
    say(f"{model} ({recipe}) on {scored_on(result, dataset)}")
    for task in tasks:
        options = ", ".join(
            f"{k} {v}" for k, v in result.options[task.name].items() if isinstance(v, int | float | str) and v
        )
        table = result_table(f"{task.name}: {options}" if options else task.name, "", right=1)
        for name, value in result.metrics[task.name].items():
            table.add_row(task.metric_labels.get(name, name), metric_text(value))
        print_table(table)
    print_skipped(result.skipped, result.notes)
    if inventory is not None:
        _print_shares(inventory)


def scored_on(result: Evaluation, dataset: Dataset) -> str:
    """Return a phrase with the numbers of objects and images that were scored, and their dataset."""
    counts = [metrics.get(name) for metrics in result.metrics.values() for name in ("instances", "objects")]
    objects = next((count for count in counts if count is not None), None)
    seed = f" (seed {dataset.seed})" if isinstance(dataset, ScenesDataset) else ""
    images = f"{result.images} images of {result.dataset}{seed}"
    return images if objects is None else f"{objects} objects in {images}"


def print_skipped(skipped: Mapping[str, int], notes: Mapping[str, int], prefix: str = "") -> None:
    """Print what was skipped and what was accepted although unusual, one line per kind."""
    for label, counts in (("skipped", skipped), ("note", notes)):
        for what, number in counts.items():
            say(f"{label}: {prefix}{what}: {number}")


def metric_text(value: float | int | None) -> str:
    """Return a metric as tables show it: counts whole, others with four digits, a dash for None."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def print_inventory(inventory: Inventory, source: str) -> None:
    """Print one row per part of a quantized model, and the shares of bytes and MACs by width."""
    say(f"{inventory.name} ({source})")
    table = result_table("part", "bits", "activations", "params", "bytes", "%", "MACs", "%", right=7)
    for part in inventory.parts:
        table.add_row(
            part.part,
            mac_width(part),
            "" if part.low is None or part.high is None else f"{_end(part.low)} to {_end(part.high)}",
            _short(part.parameters),
            _short(part.bytes),
            f"{100 * part.bytes / inventory.bytes:.1f}",
            _short(part.macs),
            f"{100 * part.macs / inventory.macs:.1f}",
        )
    print_table(table)
    _print_shares(inventory)
    ratio = inventory.float32_bytes / inventory.bytes
    say(f"tensors: {_megabytes(inventory.bytes)}, {ratio:.2f}x smaller than float32")


def _print_shares(inventory: Inventory) -> None:
    for what, shares in (
        ("bytes", inventory.share_of_bytes()),
        ("MACs (1 image, 1 box)", inventory.share_of_macs()),
    ):
        say(f"{what}: " + ", ".join(f"{100 * share:.1f} % {width}" for width, share in shares.items()))


def print_integer_layers(layers: IntegerLayers) -> None:
    """Print how many linear layers run on PyTorch's integer kernels, and why the others do not."""
    say(f"{TORCH_INTEGER}: {layers.integer} of {layers.total} quantized linear layers on integers")
    for reason, count in layers.dequantized.items():
        say(f"  {count} dequantized: {reason}")


def print_speed(speeds: Sequence[Speed]) -> None:
    """Print the latency of a model in PyTorch beside that of a float one."""
    table = result_table("", "ms", "float, ms", "speed", right=3)
    for speed in speeds:
        times = (f"{1000 * seconds:.1f}" for seconds in (speed.seconds, speed.float_seconds))
        table.add_row(speed.part, *times, f"{speed.ratio:.2f}x")
    print_table(table)
    slower = [speed.part for speed in speeds if speed.ratio < 1]
    if slower:
        say(f"slower than float here: {' and '.join(slower)}; exports are faster (saqsam export)")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _short(count: int) -> str:
    """Return a count with at most three digits and a unit: 950, 12.3k, 488G."""
    value, unit = float(count), ""
    for larger in ("k", "M", "G", "T"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f}{unit}" if unit and value < 99.95 else f"{value:.0f}{unit}"


def _end(value: float) -> str:
    """Return the end of a range in at most five characters, for values below ten thousand."""
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"


def print_allocation(allocation: Allocation) -> None:
    """Print the bits that a budget gave to each part, and what they cost."""
    recipe, log = allocation.recipe, allocation.log
    table = result_table("part", "weights", "activations", right=1)
    for part in PAPER_PARTS:
        weights, activations = recipe.bits_of(part)
        has_weights = any(error.part == part and error.kind == "weights" for error in log.errors)
        table.add_row(PART_LABELS[part], str(weights) if has_weights else "", _bits(activations))
    print_table(table)
    say(
        f"bits: {log.mean_bits:.2f} on average ({log.mean_weight_bits:.2f} of weights, "
        f"{log.mean_activation_bits:.2f} of activations), {log.bytes / 1e6:.2f} MB"
    )
    say(
        f"before learning, masks differ from the float model's by {log.measured_loss:.3f} "
        f"(1 - IoU, {count_phrase(log.images, 'images')}; predicted {log.predicted_loss:.3f})"
    )


def _bits(bits: int | None) -> str:
    return "float" if bits is None else str(bits)


def print_substitutions(recipe: Recipe) -> None:
    """Print the fields in which a recipe departs from its method for integer kernels."""
    departures = substitutions(recipe)
    if not departures:
        return
    say(f"for integer kernels, {recipe.name} departs from its method in:")
    for one in departures:
        say(f"  {one.field}: {one.used} (the method: {one.method}); {one.why}")
    say("to measure the accuracy drop, evaluate this checkpoint and one without --deploy on the same data")


def print_export(
    manifest: Manifest,
    sizes: Mapping[str, int],
    float32_bytes: int,
    inventory: Inventory | None,
    parities: Mapping[str, Parity],
) -> None:
    """Print sizes of exported files, their bit widths, and the difference of each runtime from PyTorch.

    Args:
        manifest: Manifest of the folder.
        sizes: Bytes of each model file by name.
        float32_bytes: Bytes of the model's parameters in float32.
        inventory: Inventory of the model; None for a float model.
        parities: Differences by runtime.
    """
    table = result_table("file", "MB", "of float32", right=2)
    total = sum(sizes.values())
    for name, size in [*sizes.items(), ("together", total)]:
        table.add_row(
            name, f"{size / 1e6:.2f}", f"1/{float32_bytes / size:.1f}" if name == "together" else ""
        )
    print_table(table)
    if inventory is not None:
        print_substitutions(inventory.recipe)
        _print_shares(inventory)
    _print_details(manifest)
    table = result_table("runtime", "tensor", "largest difference", "relative", right=2)
    for runtime, parity in parities.items():
        for tensor in parity.tensors:
            table.add_row(runtime, tensor.name, f"{tensor.largest:.3g}", f"{tensor.relative:.2g}")
    print_table(table)
    for runtime, parity in parities.items():
        say(
            f"masks of {manifest.name} in {runtime} against PyTorch: IoU {parity.mask_iou:.4f}, at least "
            f"{parity.least_mask_iou:.4f}, over {parity.masks} objects"
        )


def _print_details(manifest: Manifest) -> None:
    """Print what a format records of its files: delegation, arithmetic and substitutions."""
    for part, nodes in manifest.details.get("delegation", {}).items():
        outside = sum(nodes["outside"].values())
        say(
            f"{part}: {100 * nodes['share']:.1f} % of {nodes['delegated'] + outside} nodes run in XNNPACK; "
            f"integer products: {_counts(nodes['integer_products'])}; "
            f"float products: {_counts(nodes['float_products'])}; other kernels: {_counts(nodes['outside'])}"
        )
    for line in manifest.details.get("substitutions", ()):
        say(f"stored otherwise: {line}")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
