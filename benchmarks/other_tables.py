"""Tables of ranges, confidence intervals, latency and cost."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from budget_tables import allocations, bit_errors, budget
from evaluation_tables import agreement, bulk, evaluate_cost, sensitivity, tasks
from image_size_tables import image_size, image_size_latency
from plain_rows import of_most_images, of_newest_weights
from table_text import DATA, METHODS, listed, markdown, method_label, ordered, signed

SAM_B_DECODER = ["SAM-B, published", "queries and keys", "177", "", "about 100"]
"""Row of the table of outliers: queries and keys lie in [-167, 177], most of them in [-1, 1] (arXiv 2503.06515)."""
_SLOT_NAMES = {"input_quantizer": "projection inputs", "query_quantizer": "queries", "key_quantizer": "keys"}


def ranges(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the ratio of the largest to common values, for the decoder's tensors and the encoder's layers.

    Models with the same encoder share the row of the first.
    """
    if not lines:
        return ""
    decoder: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for line in lines:
        if line["where"] == "decoder":
            decoder.setdefault((line["model"], line["tensor"].rpartition(".")[2]), []).append(line)
    rows = []
    for (model, slot), of_slot in decoder.items():
        ratios = [float(line["ratio"]) for line in of_slot]
        largest = max(float(line["largest"]) for line in of_slot)
        rows.append([model, _SLOT_NAMES[slot], f"{largest:.1f}", f"{min(ratios):.1f}", f"{max(ratios):.1f}"])
    heading = ["decoder", "tensors", "largest value", "largest / 99th percentile, min", "max"]
    first = markdown(heading, [*rows, SAM_B_DECODER], right=3)
    encoder = [line for line in lines if line["where"] == "encoder"]
    kinds = list(dict.fromkeys(line["tensor"] for line in encoder))
    by_key = {(line["model"], line["tensor"]): line for line in encoder}
    model_of: dict[tuple[str, ...], str] = {}
    for name in dict.fromkeys(line["model"] for line in encoder):
        cells = tuple(_ratio_cell(by_key[name, kind]) for kind in kinds if (name, kind) in by_key)
        model_of.setdefault(cells, name)
    rows = [[name, *cells] for cells, name in model_of.items()]
    return first + "\n\n" + markdown(["encoder layer input", *kinds], rows, right=len(kinds))


_PLANTED = {
    "none": "none",
    "humps": "humps",
    "axis": "along an axis",
    "oblique": "oblique",
    "all": "all of them",
}


def outlier_errors(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate errors of the decoder's attentions by planted outliers, ranges and state of the channels."""
    columns = {
        ("as they are", "mse"): "minimum-error ranges",
        ("equalized", "mse"): "equalized",
        ("as they are", "clipped"): "clipped by output",
        ("equalized", "clipped"): "equalized, then clipped",
        ("balanced", "clipped"): "balanced, equalized, then clipped",
    }
    cells = {(line["outliers"], (line["channels"], line["ranges"])): line["error"] for line in lines}
    rows = [
        [_PLANTED[name], *(f"{float(cells[name, column]):.3f}" for column in columns)]
        for name in dict.fromkeys(line["outliers"] for line in lines)
    ]
    return markdown(["outliers", *columns.values()], rows, right=len(columns)) if rows else ""


def _ratio_cell(line: Mapping[str, str]) -> str:
    return f"{float(line['ratio']):.1f} (up to {float(line['highest_ratio']):.1f})"


def ahead(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the lead of a method over others with its confidence interval: one table per method and bits."""
    blocks = []
    for method, bits in dict.fromkeys((line["method"], line["bits"]) for line in lines):
        shown = [line for line in lines if (line["method"], line["bits"]) == (method, bits)]
        data = ordered({line["data"] for line in shown}, DATA)
        cells = {(line["rival"], line["data"]): _interval_cell(line) for line in shown}
        rows = [
            [method_label(rival), *(cells.get((rival, name), "") for name in data)]
            for rival in ordered({line["rival"] for line in shown}, METHODS)
        ]
        seeds = listed(line["seeds"] for line in shown)
        title = f"**`{method}`** at {bits} minus each other method (seeds: {seeds})"
        blocks.append(f"{title}\n\n{markdown(['', *data], rows, right=len(data))}")
    return "\n\n".join(blocks)


def _interval_cell(line: Mapping[str, str]) -> str:
    difference, low, high = (signed(float(line[name])) for name in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}]"


def cost(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the seconds of each phase of whole runs, whole commands, and step times on SAM-B, by machine."""
    blocks = []
    newest_first = sorted(lines, key=lambda line: line.get("date", ""), reverse=True)
    for machine, torch in dict.fromkeys((line["machine"], line["torch"]) for line in newest_first):
        blocks.append(f"**{machine}**, torch {torch}")
        blocks += _cost_on([line for line in lines if (line["machine"], line["torch"]) == (machine, torch)])
    return "\n\n".join(blocks)


_COST_SUBJECTS = {
    "demo": "sam-mini, effort `quick`",
    "sam-mini": "sam-mini",
    "sam-mini-plus": "sam-mini",
    "sam-b-plus": "SAM-B",
    "sam-l-plus": "SAM-L",
    "sam-h-plus": "SAM-H",
}
"""Models of whole runs, by subject."""


def _cost_on(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the tables of one machine."""
    blocks = []
    for subject, name in _COST_SUBJECTS.items():
        phases = [line for line in lines if line["subject"] == subject]
        if phases:
            rows = [[line["what"], line["seconds"], f"{100 * float(line['ratio']):.1f} %"] for line in phases]
            rows[-1][0] += f" (peak {phases[-1]['peak_gib']} GiB)" if phases[-1]["peak_gib"] else ""
            blocks.append(markdown([f"{phases[0]['recipe']} of {name}", "seconds", "share"], rows, right=2))
    commands = [line for line in lines if line["subject"] in ("sam-h-mse", "sam-h-export")]
    if commands:
        rows = [[f"`saqsam {line['what']}`", line["seconds"], line["peak_gib"]] for line in commands]
        blocks.append(
            markdown(["SAM-H, `mse` w4a8 `--deploy`, one image", "seconds", "peak GiB"], rows, right=2)
        )
    large = [line for line in lines if line["subject"] == "sam-b"]
    if large:
        heading = ["SAM-B, 1024 px", "units", "seconds per step, by unit", "published steps", "peak GiB"]
        blocks.append(markdown(heading, _units(large), right=2))
    return blocks


def _units(lines: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return the rows of a table, where consecutive units of one kind share a row, and their total."""
    rows = []
    kinds = itertools.groupby(lines, lambda line: (line["recipe"], _kind(line["what"]), line["steps"]))
    for (recipe, kind, steps), group in kinds:
        units = list(group)
        if steps:
            seconds = ", ".join(line["seconds"] for line in units)
            name = kind if len(units) == 1 else f"{len(units)} {kind}s"
            rows.append([recipe, name, seconds, f"{int(steps):,}", ""])
        else:
            hours = float(units[0]["seconds"]) / 3600
            rows.append([recipe, kind, f"{hours:.1f} h in total", "", units[0]["peak_gib"]])
    return rows


def _kind(unit: str) -> str:
    """Return the kind of a unit by its name in a progress report: `encoder block` for `3/16 encoder block 3`."""
    return re.sub(r"^\d+/\d+ |\s\d+$", "", unit)


_RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO, float32 precision",
    "openvino-native": "OpenVINO, default precision",
    "torch": "PyTorch",
    "torch-int8": "PyTorch, `torch-int8`",
}
_VARIANTS = {
    "default": "float32, `torch.onnx.export`",
    "dynamic": "ONNX Runtime `quantize_dynamic`",
    "static": "ONNX Runtime `quantize_static`",
    "nncf": "NNCF, 8 bits",
    "int4": "4-bit weight-only",
    "float": "float32, saqsam export",
    "w8a8-all": "`w8a8`, encoder attention quantized",
    "eager": "float32, eager",
}


def families(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate multiply-accumulates and bytes of published models, by family."""
    rows = [
        [
            line["family"],
            line["model"],
            line["gmac"],
            line["float_mb"],
            *(
                f"{line[bits]} ({float(line['float_mb']) / float(line[bits]):.1f}x smaller)"
                for bits in ("w8a8_mb", "w4a8_mb")
            ),
        ]
        for line in lines
    ]
    heading = ["family", "model", "GMAC", "float32, MB", "`w8a8`, MB", "`w4a8`, MB"]
    return markdown(heading, rows, right=4)


def latency(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate latency, speedup over the default export and memory: one table per machine, subject and part.

    Of a machine's rows for one case the last counts; they stand in the order in which they were measured.
    """
    blocks = []
    columns = ("machine", "subject", "part", "prompts")
    for key in dict.fromkeys(tuple(line[name] for name in columns) for line in lines):
        of_key = [line for line in lines if tuple(line[name] for name in columns) == key]
        last = {(line["runtime"], line["variant"]): index for index, line in enumerate(of_key)}
        shown = [of_key[index] for index in sorted(last.values())]
        rows = [
            [
                _RUNTIMES[line["runtime"]],
                _VARIANTS.get(line["variant"], f"`{line['variant']}`"),
                *_times(line),
                line["peak_gib"],
                line["file_mb"],
            ]
            for line in shown
        ]
        machine, subject, part, prompts = key
        title = f"**{subject}, {part}**{_prompts(prompts)}, {machine}"
        heading = ["", "", "ms", "min to max", "speedup", "GiB", "MB"]
        blocks.append(f"{title}\n\n{markdown(heading, rows, right=5)}")
    return "\n\n".join(blocks)


_GPU_VARIANTS = {
    "float32": "float32",
    "tf32": "float32, TF32 matmuls",
    "bfloat16": "bfloat16",
    "packed": "dequantized float32",
    "torch-int8": "`torch-int8`, float32 elsewhere",
    "torch-int8-bfloat16": "`torch-int8`, bfloat16 elsewhere",
}


def gpu_latency(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate GPU latency and speedup over float32: one table per machine, subject and part, from the last rows."""
    blocks = []
    columns = ("machine", "torch", "subject", "part", "prompts")
    for key in dict.fromkeys(tuple(line[name] for name in columns) for line in lines):
        of_key = [line for line in lines if tuple(line[name] for name in columns) == key]
        last = {(line["variant"], line["bits"], line["compiled"]): line for line in of_key}
        rows = [
            [
                f"`{bits}`" if bits else "",
                _GPU_VARIANTS[variant] + (", `torch.compile`" if int(compiled) else ""),
                *_times(line),
            ]
            for (variant, bits, compiled), line in last.items()
        ]
        machine, torch, subject, part, prompts = key
        title = f"**{subject}, {part}**{_prompts(prompts)}, {machine}, torch {torch}"
        blocks.append(f"{title}\n\n{markdown(['', '', 'ms', 'min to max', 'speedup'], rows, right=3)}")
    return "\n\n".join(blocks)


def _times(line: Mapping[str, str]) -> list[str]:
    """Return latency in milliseconds, its spread, and the speedup as table cells."""
    median, fastest, slowest = (1000 * float(line[name]) for name in ("seconds", "fastest", "slowest"))
    return [f"{median:.1f}", f"{fastest:.1f} to {slowest:.1f}", f"{float(line['ratio']):.2f}x"]


def _prompts(count: str) -> str:
    """Return the number of prompts for a title; empty for an encoder."""
    return f", {count} prompt{'s' if count != '1' else ''}" if count else ""


_DEPLOYED = {
    "torch": "torch, dequantized",
    "torch-float64": "torch, dequantized, float64 accumulation",
    "torch-int8": "torch, `torch-int8`",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-native": "OpenVINO, default precision",
}


def deployed(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate mean IoU of deployed checkpoints by runtime, and the IoU with torch's masks: one table per machine."""
    heading = ["deployed sam-mini", "runtime", "data", "mean IoU", "mask IoU with torch", "MB"]
    blocks, lines = [], of_most_images(of_newest_weights(lines))
    for machine in dict.fromkeys(line["machine"] for line in lines):
        rows = [
            [
                f"`{line['recipe']}`" + (f", `{line['settings']}`" if line["settings"] else ""),
                _DEPLOYED[line["runtime"]],
                line["data"],
                f"{float(line['miou']):.4f}",
                f"{float(line['mask_iou']):.4f}" if line["mask_iou"] else "",
                line["file_mb"],
            ]
            for line in lines
            if line["machine"] == machine
        ]
        blocks.append(f"{machine}\n\n{markdown(heading, rows, right=3)}")
    return "\n\n".join(blocks)


_SHOWN_SPEED = (
    ("torch", "eager"),
    ("onnxruntime", "default"),
    ("onnxruntime", "dynamic"),
    ("onnxruntime", "w4a8"),
    ("openvino", "float"),
    ("openvino", "w4a8"),
    ("openvino-native", "float"),
    ("openvino-native", "w4a8"),
)


def speed(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the large model's encoder and its decoder for many prompts, on the first machine with all rows."""
    large = [line for line in lines if line["subject"] == "sam-b" and line["prompts"] in ("", "32")]
    for machine in dict.fromkeys(line["machine"] for line in large):
        rows = _speed_rows([line for line in large if line["machine"] == machine])
        if rows is not None:
            heading = ["SAM-B, 1024 px", "", "encoder, s", "decoder, 32 boxes, s", "peak GiB", "MB"]
            return markdown(heading, rows, right=4)
    return ""


def _speed_rows(lines: Sequence[Mapping[str, str]]) -> list[list[str]] | None:
    """Return the rows of a machine; None if one is missing."""
    shown = {(line["part"], line["runtime"], line["variant"]): line for line in lines}
    rows = []
    for runtime, variant in _SHOWN_SPEED:
        keys = [(part, runtime, variant) for part in ("encoder", "decoder")]
        if not all(key in shown for key in keys):
            return None
        encoder, decoder = (shown[key] for key in keys)
        size = sum(float(cell["file_mb"] or 0) for cell in (encoder, decoder))
        times = (f"{float(cell['seconds']):.2f} ({float(cell['ratio']):.1f}x)" for cell in (encoder, decoder))
        label = _VARIANTS.get(variant, f"saqsam `{variant}`")
        rows.append([_RUNTIMES[runtime], label, *times, encoder["peak_gib"], f"{size:.0f}" if size else ""])
    return rows


OTHER_TABLES: dict[str, tuple[str, Callable[[Sequence[Mapping[str, str]]], str]]] = {
    "ranges": ("ranges.csv", ranges),
    "outliererrors": ("outlier_errors.csv", outlier_errors),
    "ahead": ("bootstrap.csv", ahead),
    "cost": ("ptq_cost.csv", cost),
    "families": ("families.csv", families),
    "latency": ("latency.csv", latency),
    "gpulatency": ("gpu_latency.csv", gpu_latency),
    "speed": ("latency.csv", speed),
    "imagesize": ("image_size.csv", image_size),
    "imagesizelatency": ("image_size_latency.csv", image_size_latency),
    "deployed": ("deployed.csv", deployed),
    "evaluatecost": ("evaluate_cost.csv", evaluate_cost),
    "tasks": ("tasks.csv", tasks),
    "bulk": ("bulk.csv", bulk),
    "sensitivity": ("sensitivity.csv", sensitivity),
    "agreement": ("agreement.csv", agreement),
    "budget": ("allocations.csv", budget),
    "allocations": ("allocations.csv", allocations),
    "biterrors": ("bit_errors.csv", bit_errors),
}
"""Tables of result files other than those of `ptq.py`."""
