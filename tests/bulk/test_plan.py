"""The plan of a bulk run identifies everything that its rows depend on."""

from pathlib import Path

from saqsam.bulk.plan import task_digest
from saqsam.segmentation.prompt_files import PromptFile
from saqsam.segmentation.prompts import Prompt
from saqsam.segmentation.run import Task


def digest(name: str) -> str:
    prompts = {"a.jpg": (Prompt(box=(2.0, 2.0, 14.0, 10.0), category_id=1),)}
    return task_digest(Task(prompt_file=PromptFile(prompts, {1: name}, Path("prompts.csv"))))


def test_names_of_categories_belong_to_the_plan() -> None:
    assert digest("cat") == digest("cat") != digest("dog")
