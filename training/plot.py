"""Draw the learning curve: `python training/plot.py` writes docs/assets/training.png from log/curve.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLORS = {"objects_train": "#1f6feb", "coco_train": "#d1495b", "nuclei_train": "#2a9d55"}
LINE_HEIGHT = 0.04
"""Least distance between two labels, in IoU."""


def main() -> None:
    """Draw the learning curve."""
    with (HERE / "log" / "curve.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    hours = [float(row["hours"]) for row in rows]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    labels = []
    for source, color in COLORS.items():
        for prompt, style in (("box", "-"), ("point", ":")):
            values = [float(row[f"{source}_{prompt}"]) for row in rows]
            axes.plot(hours, values, style, color=color, marker="o", markersize=3)
            labels.append((values[-1], f"{source.removesuffix('_train')}, {prompt}", color))
    lowest = 0.0
    for value, text, color in sorted(labels):
        place = max(value, lowest)
        lowest = place + LINE_HEIGHT
        axes.annotate(
            text,
            (hours[-1], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
        )
    for row in rows:
        if row["window"] == "256":
            axes.axvline(float(row["hours"]), color="#d9dde3", linewidth=6, zorder=0)
    axes.set_xlabel("hours on 2 CPU cores; gray: after a decay on whole frames", fontsize=8)
    axes.set_ylabel("mean IoU, held-back pictures", fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_xlim(0, hours[-1] * 1.18)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE.parent / "docs" / "assets" / "training.png", dpi=110)


if __name__ == "__main__":
    main()
