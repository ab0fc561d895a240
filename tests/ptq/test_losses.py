"""Losses: each name of the recipe has a class, and the class decides what a unit is compared by."""

import ast
import dataclasses
from pathlib import Path
from typing import get_args

import torch

import saqsam.ptq
from saqsam.convert.plan import QuantizationPlan
from saqsam.ptq.losses import LOSSES, MaskLoss, OutputLoss, PromptLoss
from saqsam.ptq.units import reconstruction_units
from saqsam.recipes.specs import Reconstruction, ReconstructionLoss
from support.tiny_quantized import tiny_plan, tiny_recipe


def learning_plan(**changes: object) -> QuantizationPlan:
    return tiny_plan(dataclasses.replace(tiny_recipe("saq-sam"), reconstruction=Reconstruction(**changes)))


def test_every_loss_that_a_recipe_can_name_has_a_class() -> None:
    assert LOSSES.keys() == set(get_args(ReconstructionLoss))


def test_units_are_learned_by_the_loss_of_the_recipe_and_the_joint_unit_by_the_masks() -> None:
    for name, kind in LOSSES.items():
        *units, joint = reconstruction_units(learning_plan(loss=name, joint_steps=1))
        assert {type(unit.loss) for unit in units} == {kind}
        assert type(joint.loss) is MaskLoss


def test_output_and_prompt_loss_differ_in_the_response_alone() -> None:
    unit = reconstruction_units(learning_plan(token_weight=0.5))[3]
    response = tuple(torch.full((2, 1, 3, 4), value) for value in (1.0, 2.0, 3.0))
    target = tuple(torch.zeros_like(tensor) for tensor in response)
    errors = [float(loss(unit, response, target)) for loss in (OutputLoss(), PromptLoss())]
    assert errors == [0.5 * 4 + 4 * 4 + 9 * 4] * 2


def test_no_module_compares_names_of_losses_or_asks_for_the_class_of_a_unit() -> None:
    for path in sorted(Path(saqsam.ptq.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                operands = [node.left, *node.comparators]
                names = {operand.value for operand in operands if isinstance(operand, ast.Constant)}
                assert not names & {"prompt", "mask"}, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                assert "Unit" not in ast.unparse(node.args[1]), f"{path.name}:{node.lineno}"
