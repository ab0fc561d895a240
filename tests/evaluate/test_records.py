"""Evaluations that stop and go on, or are shared by processes, give what one whole run gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import saqsam
from coco_folder import make_coco
from saqsam.data.scenes import ScenesDataset
from saqsam.evaluate import PromptTask, evaluate
from saqsam.evaluate.records import RecordFolder
from saqsam.evaluate.run import Subject, evaluate_together
from tiny_sam import tiny_processor, tiny_sam

SCENES = ScenesDataset(4, size=(48, 64))


class Stops:
    """Scenes whose third cannot be had."""

    name = "scenes"
    digest = SCENES.digest

    def __len__(self) -> int:
        return len(SCENES)

    def __getitem__(self, index: int) -> saqsam.data.datasets.Sample:
        if index == 2:
            raise KeyboardInterrupt
        return SCENES[index]


class Counts(Stops):
    """Scenes that say which were read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __getitem__(self, index: int) -> saqsam.data.datasets.Sample:
        self.read.append(index)
        return SCENES[index]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, folder = tiny_sam(), tmp_path / "unfinished"
    whole = evaluate(model, None, SCENES)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, None, Stops(), unfinished=folder)
    (file,) = folder.iterdir()
    with file.open("ab") as stream:  # killed while writing
        stream.write(b'{"index":2,"ima')
    counts = Counts()
    result = evaluate(model, None, counts, unfinished=folder)
    assert result.to_json() == whole.to_json()
    assert counts.read == [2, 3]
    assert evaluate(model, None, Stops(), unfinished=folder) == result  # all is there


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": 1}, "another model"),
        ({"tasks": [PromptTask("point")]}, "another tasks"),
        ({"limit": 3}, "another data"),
    ],
)
def test_records_of_another_run_are_refused_and_kept(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    evaluate(tiny_sam(), None, SCENES, unfinished=tmp_path / "run", limit=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    options: dict[str, Any] = {"limit": 2} | changes
    model = tiny_sam(seed=options.pop("model", 0))
    with pytest.raises(ValueError, match=named):
        evaluate(model, None, SCENES, unfinished=tmp_path / "run", **options)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "records-0.jsonl").write_bytes(b"[1, 2]\nno json\n")
    with pytest.raises(ValueError, match="not the records of an evaluation"):
        RecordFolder(tmp_path, {})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="found a file"):
        RecordFolder(tmp_path / "file", {})


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
            encode = model.get_image_embeddings

            def counted(pixels: Any, encode: Any = encode, model: Any = model) -> Any:
                calls.append(id(model))
                return encode(pixels)

            patch.setattr(model, "get_image_embeddings", counted)
        second.mask_decoder.iou_prediction_head.proj_out.bias.data += 1
        subjects = [Subject(model, None) for model in (first, second, other)]
        together = evaluate_together(subjects, SCENES, [PromptTask()])
    assert len(calls) == 2 * len(SCENES)
    assert id(second) not in calls
    for model, result in zip((first, second, other), together, strict=True):
        assert result == evaluate(model, None, SCENES)


def torchrun(processes: int, json_file: Path, model: Path, data: Path) -> None:
    """The command line in several processes, one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "saqsam",
        "evaluate",
        str(model),
        "--data",
        str(data),
        "--json",
        str(json_file),
    ]
    command += ["--prompt", "clicks", "--threads", "1", "--device", "cpu"]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(processes)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes
    assert [bool(output) for output in outputs] == [True] + [False] * (processes - 1)


def test_two_processes_give_the_json_of_one(tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_sam().save_pretrained(model)
    tiny_processor().save_pretrained(model)
    data = make_coco(tmp_path / "data")
    for processes in (1, 2):
        torchrun(processes, tmp_path / f"{processes}.json", model, data)
    one, two = ((tmp_path / f"{processes}.json").read_text() for processes in (1, 2))
    assert one == two
    content = json.loads(one)
    assert len(content["records"]) == content["images"] > 1
    assert [record["index"] for record in content["records"]] == list(range(content["images"]))
    assert not list(tmp_path.glob("*.unfinished"))
