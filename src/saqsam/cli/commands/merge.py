"""Implementation of `saqsam merge`."""

from __future__ import annotations

from pathlib import Path

from saqsam.bulk.merge import BulkFolder
from saqsam.cli.outputs import claim_output
from saqsam.cli.progress import busy
from saqsam.cli.terminal import say, warn
from saqsam.segmentation.formats.registry import COCO_POLYGONS, PARQUET, MaskFormat
from saqsam.utils.atomic_write import atomic_file
from saqsam.utils.counts import count_phrase


def merge(
    folder: Path, target: Path, form: MaskFormat, *, simplify: float, partial: bool, overwrite: bool
) -> None:
    """Merge the files of a bulk run into one."""
    run = BulkFolder(folder, partial=partial)
    if run.missing:
        warn(f"{len(run.missing)} of {run.plan.parts} parts are missing")
    with claim_output(target, overwrite=overwrite) as output, busy(f"merging {folder}"):
        images, failed = run.survey.images, run.survey.failures
        with atomic_file(output.staged) as file:
            if form.name == PARQUET:
                run.write_parquet(file)
            else:
                run.write_coco(file, polygons=form.name == COCO_POLYGONS, tolerance=simplify)
        output.place(is_folder=False)
    if failed:
        warn(f"{count_phrase(failed, 'images')} failed and {'is' if failed == 1 else 'are'} not in the file")
    say(f"masks of {count_phrase(images, 'images')}: {target}")
