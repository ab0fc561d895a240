import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from saqsam.evaluation import InstanceScore
from support.benchmark_row import BENCHMARK_ROW
from support.script_modules import scripts


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["bootstrap"]) as found:
        yield found["bootstrap"]


def measured(bootstrap: ModuleType, csv_file: Path, ious: np.ndarray, ids: Any = None, **changes: Any) -> Any:
    """A row and its scores beside the file of the rows."""
    row = bootstrap.Row(**BENCHMARK_ROW | changes)
    numbers = np.arange(len(ious)) if ids is None else ids
    scores = [
        InstanceScore(int(number) // 7, int(number), iou, iou)
        for number, iou in zip(numbers, ious, strict=True)
    ]
    write_scores = sys.modules[bootstrap.read_scores.__module__].write_scores
    write_scores(bootstrap.scores_file(csv_file, row.key), scores)
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
        *(
            measured(bootstrap, tmp_path / "rows.csv", base + 0.1 + noise[s], method="saq-sam", seed=s)
            for s in (0, 1)
        ),
        *(measured(bootstrap, tmp_path / "rows.csv", base + noise[s], method="mse", seed=s) for s in (1, 2)),
        measured(bootstrap, tmp_path / "rows.csv", base, method="fill-box", bits="", seed=None),
        measured(bootstrap, tmp_path / "rows.csv", base + 0.2, method="float", bits="w32a32", seed=None),
        measured(bootstrap, tmp_path / "rows.csv", base, method="mse", seed=0, settings="bimodal=true"),
        measured(bootstrap, tmp_path / "rows.csv", base, method="mse", bits="w8a8"),
    ]
    found = {comparison.rival: comparison for comparison in bootstrap.compare(rows, tmp_path / "rows.csv")}
    assert found.keys() == {"mse", "float"}
    assert found["mse"].seeds == 1
    assert found["mse"].instances == 400
    assert found["mse"].difference == pytest.approx(0.1, abs=2e-5)
    assert found["mse"].low == pytest.approx(0.1, abs=2e-5)
    assert found["float"].seeds == 2
    assert found["float"].difference == pytest.approx(-0.1 + (noise[0] + noise[1]).mean() / 2, abs=2e-5)
    assert found["float"].low < found["float"].difference < found["float"].high < 0
    lines = bootstrap.to_csv(list(found.values())).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("model_hash,bits,calibration,data,prompt,method,rival")


def test_scores_of_other_objects_are_refused(
    bootstrap: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_file, ious = tmp_path / "rows.csv", np.linspace(0, 1, 20)
    own = measured(bootstrap, csv_file, ious, method="saq-sam")
    other = measured(bootstrap, csv_file, ious, ids=np.arange(1, 21), method="mse")
    with pytest.raises(ValueError, match="other objects"):
        list(bootstrap.compare([own, other], csv_file))
    out = tmp_path / "out.csv"
    assert bootstrap.main(["--csv", str(tmp_path / "none.csv"), "--out", str(out)]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert not out.exists()


def test_comparisons_whose_scores_are_gone_stay_as_they_were(bootstrap: ModuleType, tmp_path: Path) -> None:
    csv_file, ious = tmp_path / "rows.csv", np.linspace(0, 0.9, 20)
    rows = [
        measured(bootstrap, csv_file, ious + 0.1, method="saq-sam"),
        measured(bootstrap, csv_file, ious, method="mse"),
        measured(bootstrap, csv_file, ious + 0.05, method="brecq"),
    ]
    out = tmp_path / "out.csv"
    out.write_text(bootstrap.to_csv(list(bootstrap.compare(rows, csv_file))))
    first = bootstrap.read_csv(out)
    assert {found.rival: round(found.difference, 4) for found in first} == {"mse": 0.1, "brecq": 0.05}
    bootstrap.scores_file(csv_file, rows[1].key).unlink()
    measured(bootstrap, csv_file, ious + 0.02, method="brecq")
    merged = bootstrap.merge(first, list(bootstrap.compare(rows, csv_file)))
    assert {found.rival: round(found.difference, 4) for found in merged} == {"mse": 0.1, "brecq": 0.08}
    rows = [
        measured(bootstrap, csv_file, ious, method=name, model_hash="bbbb") for name in ("saq-sam", "erq")
    ]
    merged = bootstrap.merge(merged, list(bootstrap.compare(rows, csv_file)))
    assert {(found.model_hash, found.rival) for found in merged} == {
        ("bbbb", "erq")
    }  # not of earlier weights
