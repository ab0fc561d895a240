"""A short run of the fuzzer of annotation files; `make fuzz` runs the long one."""

from pathlib import Path

import pytest

from fuzz import annotations
from fuzz.harness import FOREIGN, REFUSED, VALID, run


def test_mutants_are_read_or_refused() -> None:
    (tally,) = annotations.fuzz(150, seed=5)
    assert tally.is_good, tally.failures
    assert min(tally.outcomes[VALID], tally.outcomes[REFUSED]) > 30


def test_the_unmutated_files_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    check = annotations._check_sample
    monkeypatch.setattr(annotations, "_check_sample", lambda *args: (checked.append(args[0]), check(*args)))
    monkeypatch.setattr(annotations, "_change", lambda content, rng: None)
    monkeypatch.setattr(annotations, "_damage", lambda encoded, rng: None)
    assert run("unchanged", annotations.mutants(tmp_path, 4, seed=0)).outcomes == {VALID: 4}
    assert [len(sample.instances) for sample in checked] == [2, 3] * 4
    assert all(not sample.skipped for sample in checked)


def test_other_exceptions_are_counted_and_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(annotations, "load_detections", fail)
    assert annotations.main(["--count", "6"]) == 1
    assert f"{FOREIGN}: mutant" in capsys.readouterr().out
