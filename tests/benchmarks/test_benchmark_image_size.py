"""Tables of other input sizes, and the models whose latency is measured at them."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from support.script_modules import scripts


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with scripts("benchmarks", ["image_size", "image_size_tables", "latency_models"]) as found:
        yield found


def test_accuracy_has_a_table_for_each_dataset(modules: dict[str, ModuleType]) -> None:
    line = {"method": "float", "bits": "w32a32", "images": "50", "instances": "1416", "data": "coco_val"}
    line["model_hash"] = "bbbb"
    lines = [
        {**line, "image_size": "64", "miou": "0.7", "model_hash": "aaaa"},  # of earlier weights
        {**line, "image_size": "256", "miou": "0.61236"},
        {**line, "image_size": "96", "miou": "0.5"},
        {**line, "image_size": "96", "miou": "0.4", "method": "mse", "bits": "w8a8"},
        {**line, "image_size": "96", "miou": "0.3", "data": "nuclei_val"},
        {**line, "image_size": "96", "miou": "0.9", "images": "2"},  # a trial
    ]
    first, second = modules["image_size_tables"].image_size(lines).split("\n\n**")
    assert first.startswith("**coco_val**, 50 images, 1,416 objects, mean IoU\n")
    assert "|  | 96 px | 256 px |" in first
    assert "| float | 0.5000 | 0.6124 |" in first
    assert "| `mse` w8a8 | 0.4000 |  |" in first
    assert second.startswith("nuclei_val**, ")


def test_latency_has_a_table_for_each_machine(modules: dict[str, ModuleType]) -> None:
    line = {"machine": "CPU A, 2 threads", "threads": "1", "runtime": "torch", "variant": "eager"}
    lines = [
        {**line, "image_size": "1024", "seconds": "8", "ratio": "1", "peak_gib": "2.5"},
        {**line, "image_size": "512", "seconds": "1.6", "ratio": "5", "peak_gib": "1.5"},
        {**line, "image_size": "512", "seconds": "2", "ratio": "4", "peak_gib": "1.5"},  # the last one counts
    ]
    table = modules["image_size_tables"].image_size_latency(lines)
    assert table.startswith("**SAM-B, encoder**, CPU A, 1 thread\n")
    assert "| PyTorch, float32 | 4.00x (2.00 s) | 1.00x (8.00 s) | 1.5 | 2.5 |" in table
    assert modules["image_size_tables"].image_size_latency([]) == ""


def test_every_measured_size_has_a_model(modules: dict[str, ModuleType]) -> None:
    subjects = modules["latency_models"].SUBJECTS
    assert set(modules["latency_models"].RESIZED_SUBJECTS.values()) <= subjects.keys()
    assert set(modules["image_size_tables"]._TIMED) == set(modules["image_size"].TIMED)
