"""Resuming a quantization: its finished steps are saved to a folder, and restored into the model of the next run.

The steps are the ranges of all activations, then each unit of the reconstruction. A step holds the tensors that it
changed and its part of the log. The folder is untrusted input: `journal.py` reads its files strictly, and
`finished_steps.py` checks names, shapes and values before they are placed in the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import SamModel, SamProcessor

from saqsam._version import __version__
from saqsam.checkpoint import processor_hash
from saqsam.convert.pack import place_empty_weight
from saqsam.convert.plan import QuantizationPlan
from saqsam.convert.prepare import place_empty_quantizers
from saqsam.models.configuration import config_fields
from saqsam.models.structure import ModelStructure
from saqsam.ptq.calibration_images import CalibrationImages
from saqsam.ptq.finished_steps import check_signs, place_tensors
from saqsam.ptq.journal import Journal, damaged_step
from saqsam.ptq.log import AttentionClipping, UnitLog, read_clipping, read_unit_log
from saqsam.ptq.unit_parameters import UnitParameters, unit_tensors
from saqsam.recipes.recipe import Recipe
from saqsam.utils.tensor_bytes import tensor_bytes

_RANGES = "ranges"
_SIGNS = "signs."


@dataclass(frozen=True)
class SavedRanges:
    """The finished step of range setting.

    Attributes:
        signs: Signs of query and key channels, float32 [C], by attention.
        quantizers: Tensors of all activation quantizers, by name in the model.
        clipping: Ranges chosen for the decoder's attentions.
        path: File of the step, for error messages.
    """

    signs: dict[str, Tensor]
    quantizers: dict[str, Tensor]
    clipping: list[AttentionClipping]
    path: Path


class FinishedSteps:
    """The finished steps of one quantization.

    Args:
        folder: Folder of the steps; None keeps and restores nothing.
        run: Everything that decides the result, see `identify_run`.

    Raises:
        ValueError: The folder holds the steps of another run, or something else.
        CheckpointError: The folder is damaged.
    """

    def __init__(self, folder: Path | None = None, run: Mapping[str, str] | None = None) -> None:
        self._journal = None if folder is None else Journal(folder, run or {})

    def load_ranges(self, model: SamModel, structure: ModelStructure) -> SavedRanges | None:
        """Load the ranges that an earlier run has set; None if there are none.

        Args:
            model: Prepared model, to check signs against.
            structure: Structure of the model.

        Raises:
            CheckpointError: The step is damaged.
        """
        step = None if self._journal is None else self._journal.load(_RANGES)
        if self._journal is None or step is None:
            return None
        tensors, notes = step
        path = self._journal.path(_RANGES)
        clipping = _read_clippings(notes, path)
        signs = {n.removeprefix(_SIGNS): t for n, t in tensors.items() if n.startswith(_SIGNS)}
        check_signs(signs, model, structure, path)
        quantizers = {n: t for n, t in tensors.items() if not n.startswith(_SIGNS)}
        return SavedRanges({name: sign.float() for name, sign in signs.items()}, quantizers, clipping, path)

    @staticmethod
    def restore_ranges(ranges: SavedRanges, model: SamModel, plan: QuantizationPlan) -> None:
        """Fill the slots of a prepared model with the quantizers of an earlier run.

        Raises:
            CheckpointError: A tensor does not fit the model.
        """
        place_empty_quantizers(model, plan)
        names = _quantizer_tensors(model, plan)
        place_tensors(model, ranges.quantizers, names, ranges.path)

    def save_ranges(
        self,
        signs: Mapping[str, Tensor],
        clipping: list[AttentionClipping],
        model: SamModel,
        plan: QuantizationPlan,
    ) -> None:
        """Save the ranges of a calibrated model.

        Args:
            signs: Signs of query and key channels, +1 or -1 [C], by attention.
            clipping: Ranges chosen for the decoder's attentions.
            model: Calibrated model.
            plan: Quantization plan of the run.
        """
        if self._journal is None:
            return
        tensors = {f"{_SIGNS}{name}": sign.to(torch.int8) for name, sign in signs.items()}
        quantizers = _quantizer_tensors(model, plan)
        tensors.update({name: tensor.cpu().clone() for name, tensor in quantizers.items()})
        self._journal.save(_RANGES, tensors, {"clipping": [asdict(entry) for entry in clipping]})

    def load_unit(self, number: int, model: SamModel, parameters: UnitParameters) -> UnitLog | None:
        """Restore a unit that an earlier run has learned, and return its log; None if there is none.

        Args:
            number: Number of the unit, from 0.
            model: Calibrated model, earlier units packed; changed in place.
            parameters: Names of what is learned in the unit.

        Raises:
            CheckpointError: The step is damaged, or does not fit the model.
        """
        name = _unit_step(number)
        step = None if self._journal is None else self._journal.load(name)
        if self._journal is None or step is None:
            return None
        tensors, notes = step
        path = self._journal.path(name)
        try:
            log = read_unit_log(notes)
        except ValueError as error:
            raise damaged_step(path, str(error)) from error
        for site, bits in parameters.layers:
            place_empty_weight(model, site, bits)
        place_tensors(model, tensors, unit_tensors(model, parameters), path)
        return log

    def save_unit(self, number: int, log: UnitLog, model: SamModel, parameters: UnitParameters) -> None:
        """Save a unit that has been learned; arguments are those of `load_unit`."""
        if self._journal is not None:
            self._journal.save(_unit_step(number), unit_tensors(model, parameters), asdict(log))


def identify_run(
    model: SamModel, processor: SamProcessor, recipe: Recipe, images: CalibrationImages
) -> dict[str, str]:
    """Return everything that decides the result of a run, by the name that error messages use for it."""
    digest = hashlib.sha256(json.dumps(config_fields(model.config), sort_keys=True).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(tensor_bytes(parameter))
    on_cpu = model.device.type == "cpu"
    return {
        "model": digest.hexdigest(),
        "processor": processor_hash(processor),
        "recipe": recipe.to_json(),
        "calibration data": images.fingerprint(),
        "device": str(model.device) if on_cpu else torch.cuda.get_device_name(model.device),
        "number of threads": str(torch.get_num_threads()) if on_cpu else "",
        "version of saqsam, torch or transformers": f"{__version__} {torch.__version__} {transformers.__version__}",
    }


def _unit_step(number: int) -> str:
    return f"unit-{number:02}"


def _quantizer_tensors(model: SamModel, plan: QuantizationPlan) -> dict[str, Tensor]:
    """Return the tensors of all activation quantizers, by name in the model."""
    return {
        f"{slot.name}.{name}": tensor
        for slot in plan.slots
        for name, tensor in model.get_submodule(slot.name).state_dict().items()
    }


def _read_clippings(notes: Mapping[str, Any], path: Path) -> list[AttentionClipping]:
    entries = notes.get("clipping")
    if notes.keys() != {"clipping"} or not isinstance(entries, list):
        raise damaged_step(path, "its notes are not those of this step")
    try:
        return [read_clipping(entry) for entry in entries]
    except ValueError as error:
        raise damaged_step(path, str(error)) from error
