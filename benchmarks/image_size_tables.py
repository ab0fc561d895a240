"""Tables of accuracy and latency at other input sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plain_rows import of_most_images, of_newest_weights
from table_text import markdown

_TIMED = {
    ("torch", "eager"): "PyTorch, float32",
    ("onnxruntime", "float"): "ONNX Runtime, float32, saqsam export",
    ("onnxruntime", "w8a8"): "ONNX Runtime, `w8a8`",
}


def image_size(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate mean IoU by method and input size: one table per dataset."""
    blocks, lines = [], of_most_images(of_newest_weights(lines))
    for data in dict.fromkeys(line["data"] for line in lines):
        of_data = [line for line in lines if line["data"] == data]
        sizes = sorted({int(line["image_size"]) for line in of_data})
        cells = {(line["method"], line["bits"], int(line["image_size"])): line["miou"] for line in of_data}
        rows = [
            [
                "float" if method == "float" else f"`{method}` {bits}",
                *(
                    f"{float(cells[method, bits, size]):.4f}" if (method, bits, size) in cells else ""
                    for size in sizes
                ),
            ]
            for method, bits in dict.fromkeys((line["method"], line["bits"]) for line in of_data)
        ]
        first = of_data[0]
        title = f"**{data}**, {first['images']} images, {int(first['instances']):,} objects, mean IoU"
        blocks.append(
            f"{title}\n\n{markdown(['', *(f'{size} px' for size in sizes)], rows, right=len(sizes))}"
        )
    return "\n\n".join(blocks)


def image_size_latency(lines: Sequence[Mapping[str, str]]) -> str:
    """Tabulate the encoder's speed against the largest size of the same call, by runtime: one table per machine."""
    blocks = []
    for machine, threads in dict.fromkeys((line["machine"], line["threads"]) for line in lines):
        shown = [line for line in lines if (line["machine"], line["threads"]) == (machine, threads)]
        newest = {(line["runtime"], line["variant"], int(line["image_size"])): line for line in shown}
        sizes = sorted({size for _, _, size in newest})
        rows = [
            [
                _TIMED[runtime, variant],
                *(_speed_cell(newest[runtime, variant, size]) for size in sizes),
                *(newest[runtime, variant, size]["peak_gib"] for size in sizes),
            ]
            for runtime, variant in dict.fromkeys((runtime, variant) for runtime, variant, _ in newest)
        ]
        heading = ["", *(f"{size} px" for size in sizes), *(f"GiB at {size}" for size in sizes)]
        title = f"**SAM-B, encoder**, {machine.rpartition(',')[0]}, {threads} thread{'s' * (threads != '1')}"
        blocks.append(f"{title}\n\n{markdown(heading, rows, right=2 * len(sizes))}")
    return "\n\n".join(blocks)


def _speed_cell(line: Mapping[str, str]) -> str:
    return f"{float(line['ratio']):.2f}x ({float(line['seconds']):.2f} s)"
