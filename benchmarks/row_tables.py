"""Tables of the rows of `ptq.py` and `methods.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from deploy_fields import SUBSTITUTIONS
from rows import FILL_BOX, FLOAT, Row
from table_text import BITS, DATA, METHODS, PROMPTS, listed, markdown, method_label, ordered, rank, signed

BUNDLED = "sam-mini"
HEADLINE_BITS = "w4a4"
HEADLINE_METHODS = (FILL_BOX, FLOAT, "mse", "qdrop", "ptq4sam", "saq-sam", "saq-sam-plus")
"""Rows of the first table of README.md."""
GOALS = {"w8a8": 0.003, "w6a6": 0.01, "w4a4": 0.03}
"""Largest loss of mean IoU that the project aims at, by bits."""
GOAL_METHODS = ("saq-sam-plus", "saq-sam", "saq-sam-s")


def accuracy(rows: Sequence[Row]) -> str:
    """Tabulate mean IoU by method and bits: one table per dataset, prompt, model and calibration set."""
    return _blocks(rows, "mean IoU, {prompt} prompts", _miou)


def detections(rows: Sequence[Row]) -> str:
    """Tabulate COCO mask AP with a detector's boxes, like `accuracy`."""
    with_ap = [row for row in rows if row.segm_ap is not None]
    return _blocks(with_ap, "COCO mask AP on a detector's boxes", lambda row: row.segm_ap or 0.0)


def sizes(rows: Sequence[Row]) -> str:
    """Tabulate bytes on disk and the fraction of low-bit computation."""
    lines = []
    for model in ordered({row.model for row in rows if row.method != FILL_BOX}, ()):
        of_model = [row for row in rows if row.model == model]
        seen: dict[tuple[str, int, float | None], list[str]] = {}
        for row in sorted(of_model, key=lambda row: rank(row.method, METHODS)):
            assert row.checkpoint_bytes is not None
            same = seen.setdefault((row.bits, row.checkpoint_bytes, row.low_width_macs), [])
            if row.method not in same:
                same.append(row.method)
        float32 = max(row.float32_bytes or 0 for row in of_model)
        for (bits, size, share), methods in sorted(seen.items(), key=lambda item: rank(item[0][0], BITS)):
            if methods == [FLOAT]:
                continue
            percent = "" if share is None else f"{100 * share:.1f} %"
            smaller = f"{float32 / size:.2f}x"
            lines.append([model, bits, ", ".join(methods), f"{size:,}", smaller, percent])
    heading = ["model", "bits", "methods", "bytes on disk", "compression", "MACs at these bits"]
    return markdown(heading, lines, right=3) if lines else ""


def headline(rows: Sequence[Row]) -> str:
    """Tabulate the best-known methods at the hardest bits, as `methods` does."""
    return methods([row for row in rows if row.method in HEADLINE_METHODS])


def methods(rows: Sequence[Row]) -> str:
    """Tabulate mean IoU with box prompts at the hardest bits: one row per method, one column per dataset."""
    rows = [row for row in rows if row.prompt == "box"]
    quantized = [row for row in rows if row.bits == HEADLINE_BITS]
    if not quantized:
        return ""
    model = ordered({row.model for row in quantized}, (BUNDLED,))[0]
    calibration = statistics.mode(sorted(_calibration(row) for row in quantized if row.model == model))
    shown = [
        row
        for row in rows
        if row.model in ("", model)
        and (row.method in (FILL_BOX, FLOAT) or (row.bits, _calibration(row)) == (HEADLINE_BITS, calibration))
    ]
    data = ordered({row.data for row in shown}, DATA)
    lines = []
    for method in ordered({row.method for row in shown}, METHODS):
        cells = []
        for name in data:
            here = [row for row in shown if row.data == name]
            reference = None if method in (FILL_BOX, FLOAT) else _float_score(here, _miou)
            cells.append(_cell([row for row in here if row.method == method], _miou, reference))
        lines.append([method_label(method), *cells])
    note = (
        f"{model} at `{HEADLINE_BITS}`, calibrated on {calibration}; box prompts. "
        "In parentheses: difference from the float model."
    )
    return f"{markdown(['mean IoU on', *data], lines, right=len(data))}\n\n{note}"


def widths(rows: Sequence[Row]) -> str:
    """Tabulate the default method by bits, below the box and the float model: size on disk and mean IoU by dataset."""
    rows = [row for row in rows if row.prompt == "box" and row.data != "scenes"]
    shown = [row for row in rows if row.model == BUNDLED and row.method == "saq-sam-plus"]
    if not shown:
        return ""
    data = ordered({row.data for row in shown}, DATA)
    lines = []
    for method, name in ((FILL_BOX, "box-fill baseline"), (FLOAT, "float32")):
        scores = {row.data: row.miou for row in rows if row.model in ("", BUNDLED) and row.method == method}
        size = f"{(shown[0].float32_bytes or 0) / 1e6:.1f} MB" if method == FLOAT else ""
        lines.append([name, size, "", *(_number(scores.get(one)) for one in data)])
    for bits in ordered({row.bits for row in shown}, BITS):
        here = [row for row in shown if row.bits == bits]
        size, float32 = here[0].checkpoint_bytes, here[0].float32_bytes
        assert size is not None
        assert float32 is not None
        cells = []
        for name in data:
            reference = _float_score([row for row in rows if row.data == name], _miou)
            cells.append(_cell([row for row in here if row.data == name], _miou, reference))
        lines.append([f"`{bits}`", f"{size / 1e6:.1f} MB", f"{float32 / size:.1f}x", *cells])
    return markdown(["bits", "size on disk", "compression", *data], lines, right=2 + len(data))


def baseline(rows: Sequence[Row]) -> str:
    """Tabulate the float model and the box-fill baseline on every dataset, and the float model with points."""
    shown = [row for row in rows if row.model in ("", BUNDLED) and row.method in (FILL_BOX, FLOAT)]
    data = ordered({row.data for row in shown}, DATA)
    lines = []
    for method, prompt, name in (
        (FLOAT, "box", f"{BUNDLED}, box"),
        (FILL_BOX, "box", "box-fill baseline"),
        (FLOAT, "point", f"{BUNDLED}, one point"),
    ):
        scores = {row.data: row.miou for row in shown if (row.method, row.prompt) == (method, prompt)}
        if scores:
            lines.append([name, *(_number(scores.get(d)) for d in data)])
    return markdown(["mean IoU", *data], lines, right=len(data)) if lines else ""


def goals(rows: Sequence[Row]) -> str:
    """Tabulate where methods meet the project's goals, and by how much they miss them."""
    rows = [row for row in rows if row.prompt == "box" and row.model == BUNDLED]
    references = {row.data: row.miou for row in rows if row.method == FLOAT}
    lines = []
    for method in GOAL_METHODS:
        cells = []
        for bits, limit in GOALS.items():
            of_bits = [row for row in rows if (row.method, row.bits) == (method, bits)]
            losses = {
                name: references[name] - statistics.fmean(row.miou for row in of_bits if row.data == name)
                for name in ordered({row.data for row in of_bits} & references.keys(), DATA)
            }
            missed = [f"{name} ({signed(-loss)})" for name, loss in losses.items() if round(loss, 3) > limit]
            cells.append("" if not losses else f"missed on {', '.join(missed)}" if missed else "met")
        lines.append([method_label(method), *cells])
    heading = ["", *(f"`{bits}`: at most {limit}" for bits, limit in GOALS.items())]
    return markdown(heading, lines) if any("".join(line[1:]) for line in lines) else ""


def provenance(rows: Sequence[Row]) -> str:
    """Return machine, date and versions of the measurements."""
    if not rows:
        return ""
    lines = [
        ["weights (SHA-256)", listed(f"{row.model} {row.model_hash}" for row in rows if row.model)],
        ["machine", listed(row.machine for row in rows)],
        ["commit", listed(row.commit for row in rows)],
        ["saqsam", listed(row.saqsam for row in rows)],
        ["torch", listed(row.torch for row in rows)],
        ["transformers", listed(row.transformers for row in rows)],
        ["dates", listed(row.date[:10] for row in rows)],
    ]
    return markdown(["", ""], lines)


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "ptq": accuracy,
    "detections": detections,
    "sizes": sizes,
    "headline": headline,
    "methods": methods,
    "widths": widths,
    "baseline": baseline,
    "goals": goals,
    "provenance": provenance,
}


def ablation(variants: Sequence[Row], plain: Sequence[Row]) -> str:
    """Tabulate ablations below the unchanged method, with the difference from it in parentheses; seed 0 only."""
    variants = [row for row in variants if row.seed == 0]
    data = ordered({row.data for row in variants}, DATA)
    lines = []
    for method in ordered({row.method for row in variants}, METHODS):
        as_is = {row.data: row.miou for row in plain if row.method == method and row.seed == 0}
        if as_is:
            lines.append([method_label(method), "", *(_number(as_is.get(name)) for name in data)])
        for settings in dict.fromkeys(row.settings for row in variants if row.method == method):
            changed = {
                row.data: row.miou for row in variants if (row.method, row.settings) == (method, settings)
            }
            cells = [_number(changed.get(name), as_is.get(name)) for name in data]
            lines.append(["", " ".join(f"`{setting}`" for setting in settings.split()), *cells])
    return markdown(["method", "changed", *data], lines, right=len(data)) if lines else ""


def shift(variants: Sequence[Row], plain: Sequence[Row]) -> str:
    """Tabulate each method with other calibration data, beside its default calibration."""
    data = ordered({row.data for row in variants}, DATA)
    calibrations = ordered({row.calibration for row in [*plain, *variants] if row.calibration}, ())
    by_key = {(r.method, r.calibration, r.data): r.miou for r in [*plain, *variants] if r.seed in (None, 0)}
    lines = []
    for method in ordered({row.method for row in variants}, METHODS):
        cells = [_number(by_key.get((method, c, name))) for name in data for c in calibrations]
        lines.append([method_label(method), *cells])
    heading = ["calibrated on", *(f"{c}: {name}" for name in data for c in calibrations)]
    return markdown(heading, lines, right=len(heading) - 1) if lines else ""


def steps(variants: Sequence[Row], _plain: Sequence[Row]) -> str:
    """Tabulate accuracy and quantization time over the learning steps; `_plain` rows are of other machines."""
    methods = ordered({row.method for row in variants}, METHODS)
    data = ordered({row.data for row in variants}, DATA)
    lines = []
    for method in methods:
        for count in sorted({row.steps for row in variants if row.method == method and row.steps}):
            here = {row.data: row for row in variants if (row.method, row.steps) == (method, count)}
            minutes = max(row.seconds_quantize or 0.0 for row in here.values()) / 60
            cells = [_number(here[name].miou if name in here else None) for name in data]
            lines.append([method_label(method), f"{count:,}", f"{minutes:.1f}", *cells])
    return (
        markdown(["method", "total steps", "core-minutes", *data], lines, right=2 + len(data))
        if lines
        else ""
    )


def precision(variants: Sequence[Row], plain: Sequence[Row]) -> str:
    """Tabulate learning precisions below float32, with the difference from it in parentheses."""
    data = ordered({row.data for row in variants}, DATA)
    lines = []
    for method, bits in dict.fromkeys((row.method, row.bits) for row in variants):
        as_is = {row.data: row.miou for row in plain if (row.method, row.bits, row.seed) == (method, bits, 0)}
        changed = {row.data: row.miou for row in variants if (row.method, row.bits) == (method, bits)}
        name = f"{method_label(method)} {bits}"
        lines.append([name, "float32", *(_number(as_is.get(d)) for d in data)])
        lines.append([name, "bfloat16", *(_number(changed.get(d), as_is.get(d)) for d in data)])
    return markdown(["method", "learned in", *data], lines, right=len(data)) if lines else ""


def substitutions(variants: Sequence[Row], plain: Sequence[Row]) -> str:
    """Tabulate the accuracy drop of each change of `--deploy`, in parentheses: one table per method and bits."""
    names = {" ".join(settings): name for name, settings in SUBSTITUTIONS.items()}
    blocks = []
    for method in ordered({row.method for row in variants}, METHODS):
        for bits in ordered({row.bits for row in variants if row.method == method}, BITS):
            rows = [row for row in variants if (row.method, row.bits) == (method, bits)]
            data = ordered({row.data for row in rows}, DATA)
            as_is = {row.data: row.miou for row in rows if not row.settings}
            lines = []
            for settings, name in names.items():
                changed = {row.data: row.miou for row in rows if row.settings == settings}
                if changed:
                    reference = as_is if settings else {}
                    lines.append([name, *(_number(changed.get(d), reference.get(d)) for d in data)])
            title = f"**{method_label(method)}**, {bits}, {listed(row.machine for row in rows)}"
            blocks.append(f"{title}\n\n{markdown(['', *data], lines, right=len(data))}")
    return "\n\n".join(blocks)


def outliers(variants: Sequence[Row], plain: Sequence[Row]) -> str:
    """Tabulate methods on the model with planted outliers and, beside it, on the bundled model without them."""
    conditions = {(row.data, row.calibration) for row in variants}
    methods = ordered({row.method for row in variants}, METHODS)
    bits = ordered({row.bits for row in variants if row.method != FLOAT}, BITS)
    models = [*dict.fromkeys(row.model for row in variants), BUNDLED]
    columns = [(model, width) for width in bits for model in models]
    lines = []
    for method in methods:
        cells = []
        for model, width in columns:
            rows = [
                row
                for row in [*variants, *plain]
                if row.model == model and (row.data, row.calibration) in conditions
            ]
            reference = None if method == FLOAT else _float_score(rows, _miou)
            shown = [row for row in rows if row.method == method and (method == FLOAT or row.bits == width)]
            cells.append(_cell(shown, _miou, reference))
        lines.append([method_label(method), *cells])
    heading = ["method", *(f"{model} {width}" for model, width in columns)]
    return markdown(heading, lines, right=len(columns)) if lines else ""


def sam2(variants: Sequence[Row], _plain: Sequence[Row]) -> str:
    """Tabulate methods on the small SAM 2.1."""
    return accuracy(variants)


def _number(value: float | None, reference: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + ("" if reference is None else f" ({signed(value - reference)})")


VARIANT_TABLES: dict[str, Callable[[Sequence[Row], Sequence[Row]], str]] = {
    "ablation": ablation,
    "shift": shift,
    "steps": steps,
    "precision": precision,
    "substitutions": substitutions,
    "outliers": outliers,
    "sam2": sam2,
}
"""Tables of rows with a changed recipe, by result file, beside the unchanged methods."""


def _blocks(rows: Sequence[Row], measure: str, score: Callable[[Row], float]) -> str:
    blocks = []
    for data in ordered({row.data for row in rows}, DATA):
        for prompt in ordered({row.prompt for row in rows if row.data == data}, PROMPTS):
            same_task = [row for row in rows if (row.data, row.prompt) == (data, prompt)]
            counts = {(row.instances, row.images_evaluated) for row in same_task}
            if len(counts) > 1:
                raise ValueError(f"rows of {data} differ in what they hold: {sorted(counts)}")
            for model in ordered({row.model for row in same_task if row.model}, ()):
                of_model = [row for row in same_task if row.model in ("", model)]
                for calibration in _calibrations(of_model) or [""]:
                    shown = [row for row in of_model if _calibration(row) in ("", calibration)]
                    blocks.append(_block(shown, measure, score, model, calibration))
    return "\n\n".join(blocks)


def _block(
    rows: Sequence[Row], measure: str, score: Callable[[Row], float], model: str, calibration: str
) -> str:
    """Return a table of methods by bits."""
    first = rows[0]
    columns = ordered({row.bits for row in rows if row.method not in (FILL_BOX, FLOAT)}, BITS)
    reference = _float_score(rows, score)
    lines = []
    for method in ordered({row.method for row in rows}, METHODS):
        of_method = [row for row in rows if row.method == method]
        if method in (FILL_BOX, FLOAT):
            against = None if method == FLOAT else reference
            lines.append([method_label(method), _cell(of_method, score, against), *([""] * len(columns))])
        else:
            cells = (
                _cell([row for row in of_method if row.bits == bits], score, reference) for bits in columns
            )
            lines.append([method_label(method), "", *cells])
    what = f"{first.instances:,} objects in {first.images_evaluated:,} images"
    title = f"**{first.data}**, {measure.format(prompt=first.prompt)} ({what}); {model}"
    title += f" calibrated on {calibration}" if calibration else ""
    return f"{title}\n\n{markdown(['method', 'float', *columns], lines, right=1 + len(columns))}"


def _miou(row: Row) -> float:
    return row.miou


def _cell(rows: Sequence[Row], score: Callable[[Row], float], reference: float | None) -> str:
    """Return the mean over seeds, with the difference from float in parentheses."""
    if not rows:
        return ""
    scores = [score(row) for row in rows]
    mean = statistics.fmean(scores)
    text = f"{mean:.3f}"
    if len(scores) > 1:
        text += f" ± {statistics.stdev(scores):.3f}"
    if reference is not None:
        text += f" ({signed(mean - reference)})"
    return text


def _float_score(rows: Iterable[Row], score: Callable[[Row], float]) -> float | None:
    return next((score(row) for row in rows if row.method == FLOAT), None)


def _calibrations(rows: Iterable[Row]) -> list[str]:
    return sorted({_calibration(row) for row in rows} - {""})


def _calibration(row: Row) -> str:
    return f"{row.calibration_images} images of {row.calibration}" if row.calibration else ""
