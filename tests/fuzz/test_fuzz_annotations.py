"""A short run of the fuzzer of annotation files; `python tests/fuzz/annotations.py` makes a long one."""

from pathlib import Path

import pytest

from fuzz import annotations


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    outcome = annotations.run(tmp_path, 150, seed=5)
    assert outcome.foreign == []
    assert outcome.counts.total() == 150
    assert min(outcome.counts["read"], outcome.counts["refused"]) > 30


def test_the_unmutated_files_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    check = annotations._check_sample
    monkeypatch.setattr(annotations, "_check_sample", lambda *args: (checked.append(args[0]), check(*args)))
    monkeypatch.setattr(annotations, "_change", lambda content, rng: None)
    monkeypatch.setattr(annotations, "_damage", lambda encoded, rng: None)
    assert annotations.run(tmp_path, 4).counts == {"read": 4}
    assert [len(sample.instances) for sample in checked] == [2, 3] * 4
    assert all(not sample.skipped for sample in checked)


def test_other_exceptions_are_counted_and_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(annotations, "load_detections", fail)
    assert annotations.main(["--mutants", "6"]) == 1
    printed = capsys.readouterr().out
    assert "KeyError: 'lost'" in printed
    assert "0 foreign" not in printed.splitlines()[-1]
