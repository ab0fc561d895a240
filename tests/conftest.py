"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the photographs with masks (`coco_val`, ...), which are not part of the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SAQSAM_DATA", default))
    if not folder.is_dir():
        pytest.skip("the photographs are not here: set SAQSAM_DATA to their folder")
    return folder
