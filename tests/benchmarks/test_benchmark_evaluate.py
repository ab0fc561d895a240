"""The benchmark of evaluating: its scenes are a data set, its rows are taken where they should be."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from saqsam.data.open import open_dataset
from saqsam.data.scenes.dataset import ScenesDataset
from support.script_modules import scripts


@pytest.fixture(scope="module")
def cost() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["evaluate_cost"]) as found:
        yield found["evaluate_cost"]


def test_stored_scenes_have_the_generators_objects(cost: ModuleType, tmp_path: Path) -> None:
    folder = cost.write_scenes(tmp_path, 2)
    stored, made = open_dataset(folder), ScenesDataset(count=2)
    assert len(stored) == 2
    for index in range(2):
        one, other = stored[index], made[index]
        assert [i.rle for i in one.instances] == [i.rle for i in other.instances]
        np.testing.assert_allclose([i.box for i in one.instances], [i.box for i in other.instances])
    before = (folder / "annotations.json").stat().st_mtime_ns
    assert cost.write_scenes(tmp_path, 2) == folder
    assert (folder / "annotations.json").stat().st_mtime_ns == before


def test_a_row_at_each_mark_and_at_the_end(
    cost: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "MARKS", (1, 2))
    monkeypatch.setattr(cost.torch, "set_num_threads", lambda count: None)  # other tests need theirs
    rows = cost.turn(cost.write_scenes(tmp_path, 3), 3, 1, "box", cost.SMALL)
    assert [row["images"] for row in rows] == [1, 2, 3]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(0 <= row["outside_share"] < 1 and row["resident_mib"] > 100 for row in rows)
