"""Choose the held-back pictures once: `python training/hold_back.py DATA > training/held_back.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

COUNTS = {"objects_train": 100, "coco_train": 40, "nuclei_train": 30}


def main() -> None:
    """Print a JSON object: source -> sorted image ids, drawn with seed 0."""
    rng = np.random.default_rng(0)
    chosen = {}
    for source, count in COUNTS.items():
        annotations = json.loads((Path(sys.argv[1]) / source / "annotations.json").read_text())
        used = {a["image_id"] for a in annotations["annotations"] if not a.get("iscrowd")}
        ids = [i["id"] for i in annotations["images"] if i["id"] in used]
        chosen[source] = sorted(int(i) for i in rng.choice(ids, count, replace=False))
    print(json.dumps(chosen))


if __name__ == "__main__":
    main()
