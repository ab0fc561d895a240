"""Tables of evaluations: every task for every model, agreement with float masks, sensitivity of parts, and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plain_rows import of_newest_weights
from rows import FLOAT
from saqsam.models.parts import PART_LABELS
from table_text import DATA, METHODS, markdown, ordered, rank, signed

FIGURES = {
    "box": {"miou": "mean IoU", "boundary_iou": "boundary IoU", "share_above_90": "share above IoU 0.9"},
    "point": {"miou": "mean IoU", "boundary_iou": "boundary IoU"},
    "clicks": {"miou_1": "mean IoU, 1 click", "miou_3": "3 clicks", "miou_5": "5 clicks"},
    "instance": {"segm_ap": "mask AP", "segm_ap50": "AP50", "segm_ap_agnostic": "class-agnostic AP"},
    "oriented": {
        "rotated_ap50": "rotated AP50",
        "rotated_ap": "rotated AP",
        "rotated_miou": "mean rotated IoU",
    },
    "everything": {"ar100": "AR@100", "ar1000": "AR@1000", "segm_ap_agnostic": "class-agnostic AP"},
    "semantic": {
        "semantic_miou": "mean IoU of classes",
        "unrefined_miou": "mean IoU of classes, unrefined",
        "pixel_accuracy": "pixel accuracy",
    },
}
"""Metrics to show for each case of `tasks.py`, with their labels."""


def tasks(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the metrics: one row per metric, case and dataset, one column per model, from the last result rows."""
    lines = of_newest_weights(lines)
    cells = {
        tuple(line[key] for key in ("case", "data", "metric", "method", "bits")): line["value"]
        for line in lines
    }
    images = {(line["case"], line["data"]): line["images"] for line in lines}
    variants = {(line["method"], line["bits"]) for line in lines}
    widths = sorted({bits for method, bits in variants if method != FLOAT}, reverse=True)
    models = sorted(
        variants,
        key=lambda m: (m[0] != FLOAT, widths.index(m[1]) if m[1] in widths else 0, rank(m[0], METHODS)),
    )
    rows = []
    for case, shown in FIGURES.items():
        for data in ordered({data for name, data in images if name == case}, DATA):
            for metric, label in shown.items():
                values = [cells.get((case, data, metric, method, bits), "") for method, bits in models]
                if any(values):
                    where = f"{data} ({images[case, data]})"
                    rows.append(
                        [f"`{case}`", where, label, *(f"{float(v):.3f}" if v else "" for v in values)]
                    )
    if not rows:
        return ""
    names = ["float" if method == FLOAT else f"`{method}` {bits}" for method, bits in models]
    return markdown(["", "data (images)", "", *names], rows, right=len(names))


def evaluate_cost(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate images per second, the time outside the network and memory: one table per machine."""
    heading = [
        "model",
        "processes",
        "threads per process",
        "prompts",
        "images",
        "images per second",
        "time outside the network",
        "MiB",
    ]
    blocks = []
    for machine in dict.fromkeys(line["machine"].rpartition(",")[0] for line in lines):
        rows = [
            [
                *(line[name] for name in ("model", "processes", "threads", "prompt")),
                f"{int(line['images']):,}",
                f"{float(line['images_per_second']):.2f}",
                f"{100 * float(line['outside_share']):.1f} %",
                f"{float(line['resident_mib']):.0f}",
            ]
            for line in lines
            if line["machine"].startswith(f"{machine},")
        ]
        blocks.append(f"{machine}\n\n{markdown(heading, rows, right=4)}")
    return "\n\n".join(blocks)


def sensitivity(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the IoU with the float masks of each part alone, and of all but the part, the worst alone first."""
    if not lines:
        return ""
    first = lines[0]
    title = (
        f"**{first['model']}**, `{first['recipe']}`, {first['objects']} objects in {first['images']} images of "
        f"{first['data']}; IoU with the float masks of all parts together: {float(first['all']):.3f}"
    )
    rows = [
        [PART_LABELS[line["part"]], f"{float(line['alone']):.3f}", f"{float(line['without']):.3f}"]
        for line in sorted(lines, key=lambda line: float(line["alone"]))
    ]
    return f"{title}\n\n{markdown(['part', 'quantized alone', 'all but this quantized'], rows, right=2)}"


def agreement(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the IoU between the masks of exports and those of their float model."""
    runtimes = {"onnxruntime": "ONNX Runtime", "executorch": "ExecuTorch"}
    heading = ["export", "runtime", "mean IoU", "change (95 % interval)", "IoU with float masks", ">= 0.9"]
    rows = []
    for line in lines:
        change = float(line["miou"]) - float(line["float_miou"])
        interval = f"{signed(float(line['change_low']))} to {signed(float(line['change_high']))}"
        cells = [
            f"{float(line['miou']):.3f}",
            f"{signed(change)} ({interval})",
            f"{float(line['mask_iou']):.3f}",
        ]
        share = f"{float(line['share_above_90']):.1%}"
        rows.append([f"`{line['recipe']}`", runtimes[line["runtime"]], *cells, share])
    return markdown(heading, rows, right=4) if rows else ""


def bulk(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate images per second and memory of bulk runs."""
    heading = ["export", "prompts", "images", "images/s", "outside the model", "peak MiB", "growth MiB"]
    rows = []
    for line in lines:
        outside = f"{float(line['outside_model']):.0%}" if line["outside_model"] else ""
        cells = [line["images_per_s"], outside, line["peak_mib"], line["growth_mib"]]
        rows.append([f"`{line['model']}`", line["prompts"], f"{int(line['images']):,}", *cells])
    return markdown(heading, rows, right=5) if rows else ""
