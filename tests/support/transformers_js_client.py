"""transformers.js itself, in Node."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saqsam.utils.atomic_write import write_png

_SCRIPT = Path(__file__).parents[1] / "export" / "layouts" / "transformers_js.mjs"
needs_transformers_js = pytest.mark.skipif(
    "SAQSAM_NODE_MODULES" not in os.environ, reason="set SAQSAM_NODE_MODULES"
)


def run_transformers_js(
    folder: Path, kind: str, image: np.ndarray, prompt: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return pixel values, masks of the image's size, and the outputs of a model in transformers.js by name.

    Args:
        folder: Folder in the layout.
        kind: Class of the model, such as `SamModel`.
        image: HWC uint8 image.
        prompt: Arguments of the processor besides the image.
    """
    write_png(folder.parent / "image.png", image)
    node, out = shutil.which("node"), folder.parent / "out.json"
    assert node is not None
    arguments = [kind, folder, folder.parent / "image.png", json.dumps(prompt), out]
    done = subprocess.run(
        [node, _SCRIPT, os.environ["SAQSAM_NODE_MODULES"], *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    return {name: np.array(value["data"], np.float32).reshape(value["dims"]) for name, value in found.items()}
