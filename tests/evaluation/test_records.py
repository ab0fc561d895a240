"""Evaluations that stop and go on, or are shared by processes, give what one whole run gives."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import saqsam
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.evaluation import PromptTask, evaluate
from saqsam.evaluation.records import RecordFolder
from saqsam.evaluation.run import evaluate_together
from saqsam.evaluation.subject import Subject
from saqsam.utils.errors import CheckpointError
from support.coco_folder import make_coco
from support.tiny_sam import tiny_processor, tiny_sam
from support.torchrun import torchrun

SCENES = ScenesDataset(4, size=(48, 64))


class Stops:
    """Scenes whose third cannot be had."""

    name = "scenes"
    digest = SCENES.digest

    def __len__(self) -> int:
        return len(SCENES)

    def __getitem__(self, index: int) -> saqsam.data.types.Sample:
        if index == 2:
            raise KeyboardInterrupt
        return SCENES[index]


class Counts(Stops):
    """Scenes that say which were read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __getitem__(self, index: int) -> saqsam.data.types.Sample:
        self.read.append(index)
        return SCENES[index]


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    model, folder = tiny_sam(), tmp_path / "unfinished"
    whole = evaluate(model, None, SCENES)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, None, Stops(), resume_dir=folder)
    (file,) = folder.iterdir()
    with file.open("ab") as stream:  # killed while writing
        stream.write(b'{"index":2,"ima')
    counts = Counts()
    result = evaluate(model, None, counts, resume_dir=folder)
    assert result.to_json() == whole.to_json()
    assert counts.read == [2, 3]
    assert evaluate(model, None, Stops(), resume_dir=folder) == result  # all is there


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": 1}, "differs in model;"),
        ({"tasks": [PromptTask("point")]}, "differs in tasks;"),
        ({"limit": 3}, "differs in data;"),
    ],
)
def test_records_of_another_run_are_refused_and_kept(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    evaluate(tiny_sam(), None, SCENES, resume_dir=tmp_path / "run", limit=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    options: dict[str, Any] = {"limit": 2} | changes
    model = tiny_sam(seed=options.pop("model", 0))
    with pytest.raises(ValueError, match=named):
        evaluate(model, None, SCENES, resume_dir=tmp_path / "run", **options)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def make_records(folder: Path) -> Path:
    """The records of two images."""
    evaluate(tiny_sam(), None, SCENES, resume_dir=folder, limit=2)
    return folder / "records-0.jsonl"


def altered(lines: list[bytes], number: int, old: bytes, new: bytes) -> list[bytes]:
    assert old in lines[number]
    return [*lines[:number], lines[number].replace(old, new, 1), *lines[number + 1 :]]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda lines: altered(lines, 1, b'"iou":0', b'"iou":1'), 2),
        (lambda lines: altered(lines, 0, b"scenes", b"scents"), 1),
        (lambda lines: [lines[0], lines[2], lines[1]], 2),
        (lambda lines: [lines[0], lines[1], lines[1]], 3),
        (lambda lines: [lines[0], b"no json", lines[2]], 2),
        (lambda lines: [lines[1], lines[2]], 1),
        (lambda lines: [lines[0], b"", lines[1]], 2),
        (lambda lines: [lines[0], lines[1], b"[" * 100_000], 3),
    ],
)
def test_damaged_records_are_refused(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    path = make_records(tmp_path / "run")
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join(damage(lines)) + b"\n")
    with pytest.raises(
        CheckpointError, match=rf"records-0\.jsonl, line {line}: .*; remove .* to start again"
    ):
        evaluate(tiny_sam(), None, SCENES, resume_dir=tmp_path / "run", limit=2)


@pytest.mark.parametrize(
    "change",
    [
        {"index": 2},
        {"index": True},
        {"index": "0"},
        {"image_id": None},
        {"size": [48]},
        {"size": [2**20, 2**20]},
        {"size": [-48, -64]},
        {"file_name": 3},
        {"skipped": {"reason": 1.5}},
        {"prompt": {}},
        {"prompt": {"instances": [{"id": 1, "iou": 1.0}]}},
        {"prompt": {"instances": [{"id": 1, "iou": "1", "boundary_iou": 1, "predicted_iou": 1}]}},
        {"unknown": 1},
    ],
)
def test_records_with_a_recomputed_digest_are_checked_by_their_layout(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = make_records(tmp_path / "run")
    header, *records = (json.loads(line)["record"] for line in path.read_bytes().splitlines())
    path.unlink()
    schemas = {"prompt": PromptTask().schema()}
    folder = RecordFolder(path.parent, header["evaluation"], count=2, schemas=schemas)
    folder.append(records[1])
    folder.append({**records[0], **change})
    with pytest.raises(CheckpointError, match=r"records-0\.jsonl, line 3: "):
        evaluate(tiny_sam(), None, SCENES, resume_dir=tmp_path / "run", limit=2)


def test_two_records_of_one_image_are_refused(tmp_path: Path) -> None:
    path = make_records(tmp_path / "run")
    shutil.copy(path, path.with_name("records-1.jsonl"))
    with pytest.raises(CheckpointError, match="one record of image 0"):
        evaluate(tiny_sam(), None, SCENES, resume_dir=tmp_path / "run", limit=2)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="found a file"):
        RecordFolder(tmp_path / "file", {}, count=1, schemas={})


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_reading_ahead_changes_nothing(workers: int) -> None:
    model = tiny_sam()
    counts = Counts()
    assert evaluate(model, None, counts, workers=workers) == evaluate(model, None, SCENES)
    assert sorted(counts.read) == [0, 1, 2, 3]


def test_models_of_one_encoder_encode_once_and_score_as_alone() -> None:
    first, second, other = tiny_sam(), tiny_sam(), tiny_sam(seed=3)
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        for model in (first, second, other):
            encode = model.vision_encoder.forward

            def counted(pixels: Any, encode: Any = encode, model: Any = model) -> Any:
                calls.append(id(model))
                return encode(pixels)

            patch.setattr(model.vision_encoder, "forward", counted)
        second.mask_decoder.iou_prediction_head.proj_out.bias.data += 1
        subjects = [Subject(model, None) for model in (first, second, other)]
        together = evaluate_together(subjects, SCENES, [PromptTask()])
    assert len(calls) == 2 * len(SCENES)
    assert id(second) not in calls
    for model, result in zip((first, second, other), together, strict=True):
        assert result == evaluate(model, None, SCENES)


@pytest.mark.slow
def test_two_processes_give_the_json_of_one(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_sam().save_pretrained(model)
    tiny_processor().save_pretrained(model)
    data = make_coco(tmp_path / "data")
    for processes in (1, 2):
        written = tmp_path / f"{processes}.json"
        options = ("--prompt", "clicks", "--threads", "1", "--device", "cpu")
        ended = torchrun(processes, "evaluate", model, "--data", data, "--json", written, *options)
        assert [code for code, *_ in ended] == [0] * processes
        assert [bool(output) for _, output, _ in ended] == [True] + [False] * (processes - 1)
    one, two = ((tmp_path / f"{processes}.json").read_text() for processes in (1, 2))
    assert one == two
    content = json.loads(one)
    assert len(content["records"]) == content["images"] > 1
    assert [record["index"] for record in content["records"]] == list(range(content["images"]))
    assert not list(tmp_path.glob("*.unfinished"))


def test_data_that_cannot_be_scored_leave_other_files_alone(tmp_path: Path) -> None:
    class Unscorable(Stops):
        def __getitem__(self, index: int) -> saqsam.data.types.Sample:
            return replace(SCENES[index], instances=())

    foreign = tmp_path / "results.csv"
    foreign.write_text("precious")
    for folder in (tmp_path, tmp_path / "own"):
        with pytest.raises(ValueError, match="expected instances to score"):
            evaluate(tiny_sam(), None, Unscorable(), resume_dir=str(folder))
    assert list(tmp_path.iterdir()) == [foreign]


def test_data_may_be_given_by_name() -> None:
    named = evaluate(tiny_sam(), dataset="scenes", limit=1)
    assert named.to_json() == evaluate(tiny_sam(), tiny_processor(), ScenesDataset(24), limit=1).to_json()
