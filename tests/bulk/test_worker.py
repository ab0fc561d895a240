"""What a process checks before it adds files to a run: the model, the images, and the plan itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from saqsam.bulk.collections import Inputs
from saqsam.bulk.plan import PLAN_FILE, Plan, claim_folder, read_plan
from saqsam.bulk.worker import Job, PartWorker
from saqsam.inference.predictor import Predictor
from saqsam.segmentation.prompts import Prompt
from saqsam.segmentation.run import Task
from saqsam.utils.errors import CheckpointError
from support.coco_folder import picture
from support.tiny_sam import tiny_processor, tiny_sam


@pytest.fixture
def job(tmp_path: Path) -> Job:
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(2):
        Image.fromarray(picture((12, 16), seed)).save(photos / f"{seed}.png")
    task = Task((Prompt(box=(2.0, 2.0, 14.0, 10.0)),))
    inputs = Inputs((str(photos),), images_per_file=1)
    return Job(lambda: Predictor(tiny_sam(), tiny_processor()), inputs, task, tmp_path / "masks")


@pytest.fixture
def plan(job: Job) -> Plan:
    checkpoint = PartWorker(job).checkpoint
    return Plan.of(checkpoint, "tiny", job.inputs, job.inputs.open(), job.task)


def test_a_worker_takes_the_plan_that_was_made_of_its_model_and_images(job: Job, plan: Plan) -> None:
    assert PartWorker(job, plan).checkpoint == plan.checkpoint


def test_a_worker_refuses_another_checkpoint(job: Job, plan: Plan) -> None:
    with pytest.raises(ValueError, match=f"model: expected 0123456789ab, found {plan.checkpoint} here"):
        PartWorker(job, replace(plan, checkpoint="0123456789ab"))


def test_a_worker_refuses_another_listing(job: Job, plan: Plan) -> None:
    Image.fromarray(picture((12, 16), 9)).save(Path(job.inputs.names[0]) / "9.png")
    with pytest.raises(ValueError, match="images: expected those that the run was begun with"):
        PartWorker(job, plan)


@pytest.mark.parametrize(
    ("name", "value"), [("checkpoint", 5), ("inputs", "photos"), ("images", "2"), ("parts", None)]
)
def test_a_plan_with_a_wrong_type_is_refused(job: Job, plan: Plan, name: str, value: object) -> None:
    claim_folder(job.folder, plan)
    assert read_plan(job.folder) == plan
    path = job.folder / PLAN_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=f"plan.json: {name} has the wrong type"):
        read_plan(job.folder)
