"""Writes the tables of the documentation from the rows of a benchmark.

    python benchmarks/tables.py            # writes them
    python benchmarks/tables.py --check    # exits with 1 if a page shows other figures than the rows give

In a page, `<!-- table:NAME -->` and `<!-- /table -->` enclose a table; `<!-- table:NAME coco_val -->` is the part of it
for one data set. `TABLES` holds the names.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rows import FILL_BOX, FLOAT, Row, read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ROWS = (RESULTS / "ptq.csv", RESULTS / "methods.csv")
BUNDLED = "sam-mini"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
HEADLINE_BITS = "w4a4"
BITS = ("w8a8", "w6a6", "w4a8", "w4a4")
METHODS = (
    *(FILL_BOX, FLOAT, "min-max", "percentile", "mse", "brecq", "qdrop"),
    *("ptq4sam-s", "ptq4sam", "saq-sam-s", "saq-sam", "saq-sam-plus"),
)
DATA = ("scenes", "coco_val", "nuclei_val", "aerial_val")
PROMPTS = ("box", "point")
NOTHING_YET = "*Not measured yet: run `python benchmarks/ptq.py`, then `python benchmarks/tables.py`.*"

_BLOCK = re.compile(r"<!-- table:(\w+)(?: (\w+))? -->\n(.*?)<!-- /table -->", re.DOTALL)
_MARKER = re.compile(r"<!-- (?:table:|/table)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the tables of the documentation from measured rows.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    parser.add_argument(
        "--csv", type=Path, action="append", help="rows; can be repeated, the last file's count"
    )
    parser.add_argument("pages", nargs="*", type=Path, default=list(PAGES), help="Markdown files")
    options = parser.parse_args(arguments)
    try:
        rows = {row.key: row for path in options.csv or ROWS for row in read_rows(path)}
        stale = update_pages(options.pages, list(rows.values()), write=not options.check)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for page in stale:
        print(f"{page}: stale, run benchmarks/tables.py" if options.check else f"{page}: written")
    return 1 if stale and options.check else 0


def update_pages(pages: Iterable[Path], rows: Sequence[Row], *, write: bool) -> list[Path]:
    """The pages whose tables are not those of the rows; they are rewritten if `write`."""
    stale = []
    for page in pages:
        old = page.read_text(encoding="utf-8")
        try:
            new = fill_tables(old, rows)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from error
        if new != old:
            stale.append(page)
            if write:
                page.write_text(new, encoding="utf-8")
    return stale


def fill_tables(text: str, rows: Sequence[Row]) -> str:
    """A page with all its tables made anew.

    Raises:
        ValueError: An unknown table, a marker without its partner, or rows that do not fit together.
    """
    rows = [row for row in current(rows) if not row.settings]

    def fill(found: re.Match[str]) -> str:
        name, data = found[1], found[2]
        if name in VARIANT_TABLES:
            variants = [row for row in current(read_rows(RESULTS / f"{name}.csv")) if row.prompt == "box"]
            plain = [row for row in rows if row.prompt == "box" and row.bits == HEADLINE_BITS]
            table = VARIANT_TABLES[name](variants, plain) or NOTHING_YET
        elif name in OTHER_TABLES:
            file, make = OTHER_TABLES[name]
            table = make(read_plain(RESULTS / file)) or NOTHING_YET
        elif name in TABLES:
            table = TABLES[name]([row for row in rows if data in (None, row.data)]) or NOTHING_YET
        else:
            known = [*TABLES, *VARIANT_TABLES, *OTHER_TABLES]
            raise ValueError(f"no table {name!r}; there are {', '.join(known)}")
        return f"<!-- table:{name}{f' {data}' if data else ''} -->\n\n{table}\n\n<!-- /table -->"

    blocks = list(_BLOCK.finditer(text))
    if any(_MARKER.search(block[3]) for block in blocks) or len(_MARKER.findall(text)) != 2 * len(blocks):
        raise ValueError("every <!-- table:NAME --> needs a <!-- /table --> of its own")
    return _BLOCK.sub(fill, text)


def current(rows: Sequence[Row]) -> list[Row]:
    """The rows that tables show.

    Of each model those of the weights that were measured last; of each data set, with each prompt, those of the
    largest number of images. The others are trials (`--limit`) and history.
    """
    newest: dict[str, Row] = {}
    most: dict[tuple[str, str], int] = {}
    for row in sorted(rows, key=lambda row: row.date):
        newest[row.model] = row
    kept = [row for row in rows if row.model_hash == newest[row.model].model_hash]
    for row in kept:
        most[row.data, row.prompt] = max(row.images_evaluated, most.get((row.data, row.prompt), 0))
    return [row for row in kept if row.images_evaluated == most[row.data, row.prompt]]


def accuracy(rows: Sequence[Row]) -> str:
    """Mean IoU by method and bits: a table for each data set, prompt, model and calibration."""
    return _blocks(rows, "mean IoU, {prompt} prompts", _miou)


def detections(rows: Sequence[Row]) -> str:
    """COCO mask AP on a detector's boxes, as `accuracy`."""
    with_ap = [row for row in rows if row.segm_ap is not None]
    return _blocks(with_ap, "COCO mask AP on a detector's boxes", lambda row: row.segm_ap or 0.0)


def sizes(rows: Sequence[Row]) -> str:
    """Bytes on disk, and what share of the computation has the low width."""
    lines = []
    for model in _ordered({row.model for row in rows if row.method != FILL_BOX}, ()):
        of_model = [row for row in rows if row.model == model]
        seen: dict[tuple[str, int, float | None], list[str]] = {}
        for row in sorted(of_model, key=lambda row: _rank(row.method, METHODS)):
            assert row.checkpoint_bytes is not None
            same = seen.setdefault((row.bits, row.checkpoint_bytes, row.low_width_macs), [])
            if row.method not in same:
                same.append(row.method)
        float32 = max(row.float32_bytes or 0 for row in of_model)
        for (bits, size, share), methods in sorted(seen.items(), key=lambda item: _rank(item[0][0], BITS)):
            if methods == [FLOAT]:
                continue
            percent = "" if share is None else f"{100 * share:.1f} %"
            smaller = f"{float32 / size:.2f}x"
            lines.append([model, bits, ", ".join(methods), f"{size:,}", smaller, percent])
    heading = ["model", "bits", "methods", "bytes on disk", "smaller than float32", "MACs at these bits"]
    return _markdown(heading, lines, right=3) if lines else ""


def headline(rows: Sequence[Row]) -> str:
    """The hardest bits with box prompts: a line for each method, a column for each data set; one model alone."""
    rows = [row for row in rows if row.prompt == "box"]
    quantized = [row for row in rows if row.bits == HEADLINE_BITS]
    if not quantized:
        return ""
    model = _ordered({row.model for row in quantized}, (BUNDLED,))[0]
    calibration = statistics.mode(sorted(_calibration(row) for row in quantized if row.model == model))
    shown = [
        row
        for row in rows
        if row.model in ("", model)
        and (row.method in (FILL_BOX, FLOAT) or (row.bits, _calibration(row)) == (HEADLINE_BITS, calibration))
    ]
    data = _ordered({row.data for row in shown}, DATA)
    lines = []
    for method in _ordered({row.method for row in shown}, METHODS):
        cells = []
        for name in data:
            here = [row for row in shown if row.data == name]
            reference = None if method in (FILL_BOX, FLOAT) else _float_score(here, _miou)
            cells.append(_cell([row for row in here if row.method == method], _miou, reference))
        lines.append([_method_label(method), *cells])
    note = f"{model} at `{HEADLINE_BITS}`, calibrated on {calibration}; box prompts; in brackets, difference to float."
    return f"{_markdown(['mean IoU on', *data], lines, right=len(data))}\n\n{note}"


def provenance(rows: Sequence[Row]) -> str:
    """Where, when and with what the rows were measured."""
    if not rows:
        return ""
    lines = [
        ["weights (SHA-256)", _listed(f"{row.model} {row.model_hash}" for row in rows if row.model)],
        ["machine", _listed(row.machine for row in rows)],
        ["commit", _listed(row.commit for row in rows)],
        ["saqsam", _listed(row.saqsam for row in rows)],
        ["torch", _listed(row.torch for row in rows)],
        ["transformers", _listed(row.transformers for row in rows)],
        ["days", _listed(row.date[:10] for row in rows)],
    ]
    return _markdown(["", ""], lines)


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "ptq": accuracy,
    "detections": detections,
    "sizes": sizes,
    "headline": headline,
    "provenance": provenance,
}


def ablation(variants: Sequence[Row], plain: Sequence[Row]) -> str:
    """Methods with a part changed, each below the method as it is; in brackets the difference to that."""
    data = _ordered({row.data for row in variants}, DATA)
    lines = []
    for method in _ordered({row.method for row in variants}, METHODS):
        as_is = {row.data: row.miou for row in plain if row.method == method and row.seed == 0}
        if as_is:
            lines.append([_method_label(method), "", *(_number(as_is.get(name)) for name in data)])
        for settings in dict.fromkeys(row.settings for row in variants if row.method == method):
            found = {
                row.data: row.miou for row in variants if (row.method, row.settings) == (method, settings)
            }
            cells = [_number(found.get(name), as_is.get(name)) for name in data]
            lines.append(["", " ".join(f"`{setting}`" for setting in settings.split()), *cells])
    return _markdown(["method", "changed", *data], lines, right=len(data)) if lines else ""


def shift(variants: Sequence[Row], plain: Sequence[Row]) -> str:
    """Each method calibrated on other data, beside what it gives calibrated as in the other tables."""
    data = _ordered({row.data for row in variants}, DATA)
    calibrations = _ordered({row.calibration for row in [*plain, *variants] if row.calibration}, ())
    by_key = {(r.method, r.calibration, r.data): r.miou for r in [*plain, *variants] if r.seed in (None, 0)}
    lines = []
    for method in _ordered({row.method for row in variants}, METHODS):
        cells = [_number(by_key.get((method, c, name))) for name in data for c in calibrations]
        lines.append([_method_label(method), *cells])
    heading = ["calibrated on", *(f"{c}: {name}" for name in data for c in calibrations)]
    return _markdown(heading, lines, right=len(heading) - 1) if lines else ""


def steps(variants: Sequence[Row], plain: Sequence[Row]) -> str:
    """Accuracy over the steps of learning, and the time that quantizing took."""
    methods = _ordered({row.method for row in variants}, METHODS)
    data = _ordered({row.data for row in variants}, DATA)
    rows = [row for row in [*plain, *variants] if row.method in methods and row.seed == 0]
    lines = []
    for method in methods:
        for count in sorted({row.steps for row in rows if row.method == method and row.steps}):
            here = {row.data: row for row in rows if (row.method, row.steps) == (method, count)}
            minutes = max(row.seconds_quantize or 0.0 for row in here.values()) / 60
            cells = [_number(here[name].miou if name in here else None) for name in data]
            lines.append([_method_label(method), f"{count:,}", f"{minutes:.1f}", *cells])
    return (
        _markdown(["method", "steps in all", "minutes", *data], lines, right=2 + len(data)) if lines else ""
    )


def _number(value: float | None, reference: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" + ("" if reference is None else f" ({_signed(value - reference)})")


VARIANT_TABLES: dict[str, Callable[[Sequence[Row], Sequence[Row]], str]] = {
    "ablation": ablation,
    "shift": shift,
    "steps": steps,
}
"""Tables of rows that depart from a method's own recipe, from the file of that name, beside those of the methods."""


def read_plain(path: Path) -> list[dict[str, str]]:
    """Lines of a CSV file by column; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def outliers(lines: Sequence[Mapping[str, str]]) -> str:
    """Largest against common values: the decoder's tensors in order, the encoder's layers by kind beside SAM's."""
    if not lines:
        return ""
    decoder = [line for line in lines if line["where"] == "decoder"]
    model = decoder[0]["model"]
    slots = list(dict.fromkeys(line["tensor"].rpartition(".")[2] for line in decoder))
    names = {"input_quantizer": "projected from", "query_quantizer": "queries", "key_quantizer": "keys"}
    rows = []
    for slot in slots:
        of_slot = [line for line in decoder if line["tensor"].endswith(slot)]
        ratios = [float(line["ratio"]) for line in of_slot]
        largest = max(float(line["largest"]) for line in of_slot)
        rows.append([names[slot], f"{largest:.1f}", f"{min(ratios):.1f}", f"{max(ratios):.1f}"])
    heading = [f"decoder of {model}", "largest", "largest / 99 %, least", "most"]
    first = _markdown(heading, rows, right=3)
    encoder = [line for line in lines if line["where"] == "encoder"]
    models = list(dict.fromkeys(line["model"] for line in encoder))
    kinds = list(dict.fromkeys(line["tensor"] for line in encoder))
    by_key = {(line["model"], line["tensor"]): line for line in encoder}
    rows = [
        [name, *(_ratio_cell(by_key[name, kind]) for kind in kinds if (name, kind) in by_key)]
        for name in models
    ]
    return first + "\n\n" + _markdown(["encoder, input of", *kinds], rows, right=len(kinds))


def _ratio_cell(line: Mapping[str, str]) -> str:
    return f"{float(line['ratio']):.1f} (up to {float(line['highest_ratio']):.1f})"


def ahead(lines: Sequence[Mapping[str, str]]) -> str:
    """By how much a method is ahead of others, with the interval: a table for each method and bits."""
    blocks = []
    for method, bits in dict.fromkeys((line["method"], line["bits"]) for line in lines):
        shown = [line for line in lines if (line["method"], line["bits"]) == (method, bits)]
        data = _ordered({line["data"] for line in shown}, DATA)
        cells = {(line["rival"], line["data"]): _interval_cell(line) for line in shown}
        rows = [
            [_method_label(rival), *(cells.get((rival, name), "") for name in data)]
            for rival in _ordered({line["rival"] for line in shown}, METHODS)
        ]
        seeds = _listed(line["seeds"] for line in shown)
        title = f"**`{method}`** at {bits}, ahead of (seeds: {seeds})"
        blocks.append(f"{title}\n\n{_markdown(['', *data], rows, right=len(data))}")
    return "\n\n".join(blocks)


def _interval_cell(line: Mapping[str, str]) -> str:
    difference, low, high = (_signed(float(line[name])) for name in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}]"


def cost(lines: Sequence[Mapping[str, str]]) -> str:
    """Seconds of each phase on sam-mini; the clipping search's ratio; steps and projections on SAM-B."""
    blocks = []
    for subject in ("sam-mini", "sam-mini-plus"):
        mini = [line for line in lines if line["subject"] == subject]
        if not mini:
            continue
        rows = [[line["what"], line["seconds"], f"{100 * float(line['ratio']):.1f} %"] for line in mini]
        blocks.append(_markdown([f"{mini[0]['recipe']} of sam-mini", "seconds", "share"], rows, right=2))
    search = {line["what"]: line for line in lines if line["subject"] == "search"}
    if search:
        rows = [[what, line["seconds"], f"{float(line['ratio']):.1f}x"] for what, line in search.items()]
        blocks.append(_markdown(["clipping search, all attentions once", "seconds", "speed"], rows, right=2))
    large = [line for line in lines if line["subject"] == "sam-b"]
    if large:
        rows = []
        for line in large:
            is_total = not line["steps"]
            seconds = f"{float(line['seconds']) / 3600:.1f} h in all" if is_total else line["seconds"]
            steps = f"{int(line['steps']):,}" if line["steps"] else ""
            rows.append([line["recipe"], line["what"], seconds, steps, line["peak_gib"]])
        heading = ["SAM-B, 1024 px", "unit", "seconds a step", "published steps", "peak GiB"]
        blocks.append(_markdown(heading, rows, right=3))
    machines = _listed(f"{line['machine']}, torch {line['torch']}" for line in lines)
    return "\n\n".join([*blocks, f"Measured on {machines}."]) if lines else ""


OTHER_TABLES: dict[str, tuple[str, Callable[[Sequence[Mapping[str, str]]], str]]] = {
    "outliers": ("ranges.csv", outliers),
    "ahead": ("bootstrap.csv", ahead),
    "cost": ("ptq_cost.csv", cost),
}
"""Tables of other files than the rows of `ptq.py`, in the folder of the results."""


def _blocks(rows: Sequence[Row], measure: str, score: Callable[[Row], float]) -> str:
    blocks = []
    for data in _ordered({row.data for row in rows}, DATA):
        for prompt in _ordered({row.prompt for row in rows if row.data == data}, PROMPTS):
            same_task = [row for row in rows if (row.data, row.prompt) == (data, prompt)]
            counts = {(row.instances, row.images_evaluated) for row in same_task}
            if len(counts) > 1:
                raise ValueError(f"rows of {data} differ in what they hold: {sorted(counts)}")
            for model in _ordered({row.model for row in same_task if row.model}, ()):
                of_model = [row for row in same_task if row.model in ("", model)]
                for calibration in _calibrations(of_model) or [""]:
                    shown = [row for row in of_model if _calibration(row) in ("", calibration)]
                    blocks.append(_block(shown, measure, score, model, calibration))
    return "\n\n".join(blocks)


def _block(
    rows: Sequence[Row], measure: str, score: Callable[[Row], float], model: str, calibration: str
) -> str:
    """One table: methods down, bits across."""
    first = rows[0]
    columns = _ordered({row.bits for row in rows if row.method not in (FILL_BOX, FLOAT)}, BITS)
    reference = _float_score(rows, score)
    lines = []
    for method in _ordered({row.method for row in rows}, METHODS):
        of_method = [row for row in rows if row.method == method]
        if method in (FILL_BOX, FLOAT):
            against = None if method == FLOAT else reference
            lines.append([_method_label(method), _cell(of_method, score, against), *([""] * len(columns))])
        else:
            cells = (
                _cell([row for row in of_method if row.bits == bits], score, reference) for bits in columns
            )
            lines.append([_method_label(method), "", *cells])
    what = f"{first.instances:,} objects in {first.images_evaluated:,} images"
    title = f"**{first.data}**, {measure.format(prompt=first.prompt)} ({what}); {model}"
    title += f" calibrated on {calibration}" if calibration else ""
    return f"{title}\n\n{_markdown(['method', 'float', *columns], lines, right=1 + len(columns))}"


def _miou(row: Row) -> float:
    return row.miou


def _method_label(method: str) -> str:
    return {FILL_BOX: "the box itself", FLOAT: "float model"}.get(method, f"`{method}`")


def _cell(rows: Sequence[Row], score: Callable[[Row], float], reference: float | None) -> str:
    """Mean over the rows, which differ in the seed, and in brackets the difference to float."""
    if not rows:
        return ""
    scores = [score(row) for row in rows]
    mean = statistics.fmean(scores)
    text = f"{mean:.3f}"
    if len(scores) > 1:
        text += f" ± {statistics.stdev(scores):.3f}"
    if reference is not None:
        text += f" ({_signed(mean - reference)})"
    return text


def _signed(value: float) -> str:
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "−")


def _float_score(rows: Iterable[Row], score: Callable[[Row], float]) -> float | None:
    return next((score(row) for row in rows if row.method == FLOAT), None)


def _calibrations(rows: Iterable[Row]) -> list[str]:
    return sorted({_calibration(row) for row in rows} - {""})


def _calibration(row: Row) -> str:
    return f"{row.calibration_images} images of {row.calibration}" if row.calibration else ""


def _ordered(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Those of a known order first, in it; the others by name."""
    return sorted(names, key=lambda name: _rank(name, order))


def _rank(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def _listed(names: Iterable[str]) -> str:
    return "; ".join(sorted(set(names)))


def _markdown(heading: Sequence[str], lines: Sequence[Sequence[str]], right: int = 0) -> str:
    """A Markdown table; the last `right` columns are aligned to the right."""
    rule = ["---"] * (len(heading) - right) + ["---:"] * right
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *lines))


if __name__ == "__main__":
    sys.exit(main())
