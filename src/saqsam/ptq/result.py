"""The result of a quantization: the model, the arguments it came from, and the log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import SamModel, SamProcessor

from saqsam.checkpoint import save_checkpoint
from saqsam.ptq.journal import remove_steps
from saqsam.ptq.log import QuantizationLog
from saqsam.recipes.recipe import Recipe
from saqsam.utils.counts import count_phrase


@dataclass(frozen=True, eq=False, repr=False)
class QuantizationResult:
    """A quantized model and how it was made.

    Attributes:
        model: Quantized model in eval mode, on the device of the float model. Its weights are packed codes.
        processor: Processor of the model.
        recipe: Recipe that it was quantized by.
        log: Log of the quantization.
        resume_dir: Folder of finished steps, or None; `save` removes the steps.
    """

    model: SamModel
    processor: SamProcessor
    recipe: Recipe
    log: QuantizationLog
    resume_dir: Path | None = None

    def __repr__(self) -> str:
        images, prompts = count_phrase(self.log.images, "images"), count_phrase(self.log.prompts, "prompts")
        calibration = (
            f"calibrated on {images}, {prompts}" if self.recipe.needs_calibration else "not calibrated"
        )
        return f"QuantizationResult({self.recipe.name}, {calibration})"

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a checkpoint folder, then remove the finished steps of the run.

        If writing fails, the finished steps are kept, so that the same call of `saqsam.quantize` resumes from them.

        Args:
            folder: Folder to write; it appears when it is complete.
            overwrite: Replace an existing checkpoint or empty folder. Any other folder is never replaced.

        Returns:
            The folder.

        Raises:
            ValueError: The folder exists and must not be replaced.
        """
        path = save_checkpoint(self.model, self.processor, folder, overwrite=overwrite)
        if self.resume_dir is not None:
            remove_steps(self.resume_dir)
        return path
