"""Fixtures for all tests."""

import os
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Before anything of saqsam: Triton decides on import whether its kernels are compiled or interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from saqsam.checkpoint import save_checkpoint
from support.tiny_quantized import quantized_tiny
from support.tiny_sam import tiny_processor, tiny_sam

# Machines differ, and the first example compiles and caches. The parent keeps what Hypothesis sets for CI.
settings.register_profile("saqsam", settings.default, deadline=None)
settings.load_profile("saqsam")
# Workers of pytest-xdist share the cores: with two threads each, they wait for one another most of the time.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))
# A shell that runs tests in the background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the photographs with masks (`coco_val`, ...), which are not part of the repository."""
    folder = Path(os.environ.get("SAQSAM_DATA", Path(__file__).resolve().parents[1] / "data"))
    if not folder.is_dir():
        pytest.skip(f"there are no photographs in {folder}; set SAQSAM_DATA to their folder")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float tiny SAM as a folder of transformers."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sam().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quantized tiny SAM as a checkpoint, to be changed by no test."""
    folder = tmp_path_factory.mktemp("models") / "packed"
    return save_checkpoint(quantized_tiny(), tiny_processor(), folder)
