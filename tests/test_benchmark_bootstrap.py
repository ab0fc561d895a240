from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmark_row import BENCHMARK_ROW
from script_modules import scripts


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["bootstrap"]) as found:
        yield found["bootstrap"]


def measured(bootstrap: ModuleType, cache: Path, ious: np.ndarray, ids: Any = None, **changes: Any) -> Any:
    """A row and its scores in the cache."""
    row = bootstrap.Row(**BENCHMARK_ROW | changes)
    path = bootstrap.ptq.scores_file(cache, row.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(len(ious)) if ids is None else ids
    np.savez(path, image_id=numbers // 7, instance_id=numbers, iou=ious, predicted_iou=ious)
    return row


def test_the_interval_is_that_of_a_mean(bootstrap: ModuleType) -> None:
    values = np.random.default_rng(1).normal(0.3, 2.0, 900)
    low, high = bootstrap.interval(values)
    reach = 1.96 * values.std() / 30
    assert low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert high == pytest.approx(values.mean() + reach, abs=0.1 * reach)
    assert bootstrap.interval(np.full(50, 0.25)) == (0.25, 0.25)
    assert bootstrap.interval(values) == (low, high)


def test_pairs_are_means_over_the_seeds_that_both_have(bootstrap: ModuleType, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = random.uniform(0.2, 0.8, 400)
    noise = {seed: random.normal(0, 0.05, 400) for seed in (0, 1, 2)}
    rows = [
        *(measured(bootstrap, tmp_path, base + 0.1 + noise[s], method="saq-sam", seed=s) for s in (0, 1)),
        *(measured(bootstrap, tmp_path, base + noise[s], method="mse", seed=s) for s in (1, 2)),
        measured(bootstrap, tmp_path, base, method="fill-box", bits="", seed=None),
        measured(bootstrap, tmp_path, base + 0.2, method="float", bits="w32a32", seed=None),
        measured(bootstrap, tmp_path, base, method="mse", seed=0, settings="bimodal=true"),
        measured(bootstrap, tmp_path, base, method="mse", bits="w8a8"),
    ]
    found = {comparison.rival: comparison for comparison in bootstrap.compare(rows, tmp_path)}
    assert found.keys() == {"mse", "float"}
    assert found["mse"].seeds == 1
    assert found["mse"].instances == 400
    assert found["mse"].difference == pytest.approx(0.1)
    assert found["mse"].low == pytest.approx(0.1)
    assert found["float"].seeds == 2
    assert found["float"].difference == pytest.approx(-0.1 + (noise[0] + noise[1]).mean() / 2)
    assert found["float"].low < found["float"].difference < found["float"].high < 0
    lines = bootstrap.to_csv(list(found.values())).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("model_hash,bits,calibration,data,prompt,method,rival")


def test_scores_that_are_missing_or_of_other_objects_are_refused(
    bootstrap: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ious = np.linspace(0, 1, 20)
    own = measured(bootstrap, tmp_path, ious, method="saq-sam")
    other = measured(bootstrap, tmp_path, ious, ids=np.arange(1, 21), method="mse")
    with pytest.raises(ValueError, match="other objects"):
        list(bootstrap.compare([own, other], tmp_path))
    bootstrap.ptq.scores_file(tmp_path, other.key).unlink()
    with pytest.raises(ValueError, match="no scores of single objects"):
        list(bootstrap.compare([own, other], tmp_path))
    out = tmp_path / "out.csv"
    assert bootstrap.main(["--csv", str(tmp_path / "none.csv"), "--out", str(out)]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert not out.exists()
