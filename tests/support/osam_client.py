"""Exported files in the place of one of osam's models, as the guide puts them there."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.client_steps import Exports


def osam_mask(
    exports: Exports,
    name: str,
    image: np.ndarray,
    points: Any,
    labels: Any,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> np.ndarray:
    """Return the mask [H, W] that osam's own code computes for a prompt; skip the test if osam is not installed.

    Args:
        exports: Files in osam's layout.
        name: Model of osam to replace.
        image: HWC uint8 image.
        points: Points [N, 2] as x, y in pixels of the image, corners of a box among them.
        labels: Labels [N].
        home: Folder in which osam keeps its files.
        monkeypatch: Restores osam.
    """
    osam = pytest.importorskip("osam")
    monkeypatch.setenv("HOME", str(home))
    model = osam.apis.get_model_type_by_name(name)
    blobs: dict[str, Any] = {}
    for part, path in (("encoder", exports.encoder), ("decoder", exports.decoder)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blobs[part] = osam.types.Blob(url=path.as_uri(), hash=f"sha256:{digest}")
        Path(blobs[part].path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs[part].path)
    monkeypatch.setattr(model, "_blobs", blobs)
    monkeypatch.setattr(osam.apis, "running_model", None)
    prompt = osam.types.Prompt(points=np.array(points), point_labels=np.array(labels))
    request = osam.types.GenerateRequest(model=name, image=image, prompt=prompt)
    (annotation,) = osam.apis.generate(request).annotations
    box = annotation.bounding_box
    found = np.zeros(image.shape[:2], bool)
    found[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = annotation.mask
    return found
