"""What the commands do: their arguments are those of `app`, where each is explained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import SamModel, SamProcessor
from transformers.utils import logging

import saqsam
from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import check_target, load_checkpoint, quantization_config_of, save_checkpoint
from saqsam.cli.evaluation import generator_options, measure_integers, print_integers
from saqsam.cli.inputs import (
    json_bytes,
    load_torch,
    open_calibration,
    open_labelled,
    open_model,
    write_json,
)
from saqsam.cli.outputs import Output, claim_optional, claim_output
from saqsam.cli.result_tables import (
    print_export,
    print_integer_layers,
    print_inventory,
    print_left_out,
    print_substitutions,
    print_summary,
)
from saqsam.cli.terminal import bar, busy, out, progress_bars, result_table, say, stage_bars
from saqsam.data.detections import Detections, load_detections
from saqsam.data.images import read_image
from saqsam.data.open import SCENES, open_dataset
from saqsam.data.types import Dataset
from saqsam.evaluation import Evaluation, PromptTask
from saqsam.evaluation.compare import task_difference
from saqsam.export import check_export, export_model, is_export
from saqsam.inference.mask_generator import MaskGenerator
from saqsam.inference.predictor import Predictor
from saqsam.ptq.log import QuantizationLog
from saqsam.recipes.deployment import deployable
from saqsam.recipes.overrides import with_settings
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Recipe
from saqsam.report.collect import Scored, collect
from saqsam.report.log import Source, write_log
from saqsam.report.write import PAGE, write_report
from saqsam.runtimes import TORCH_INTEGER, find_integer_layers
from saqsam.utils.atomic_write import check_file_writable, png_bytes, write_png
from saqsam.utils.counts import count_phrase
from saqsam.utils.sizes import parse_size
from saqsam.verification.verify import parity_content, runtimes_to_judge, verify_export
from saqsam.viz.overlays import overlay_masks
from saqsam.viz.side_by_side import draw_side_by_side, median_and_worst

NO_CHECK = "none"
PICTURE = "comparison.png"
CHECK_TASK = PromptTask("box", keep_masks=True)
"""What float and quantized model are compared in."""
PARITY_IMAGES = 4
"""Scenes that an export is compared with torch on."""

Prompt = tuple[str, Sequence[float]]
"""Coordinates in pixels, xyxy or x, y, with the text in which they were given."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep what transformers logs for programmers out of the commands' output while the block runs."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def quantize(
    model: str,
    out_dir: Path,
    *,
    method: str,
    bits: str,
    calibration: str,
    images: int,
    seed: int,
    detections: Path | None,
    ignore_label: str,
    effort: str,
    steps: int | None,
    settings: Sequence[str],
    deploy: str | None,
    memory: str,
    check: str,
    check_images: int | None,
    device: str,
    overwrite: bool,
) -> None:
    """Quantize, write, reload, compare."""
    recipe = _recipe(method, bits, effort, steps, settings, deploy=deploy)
    recipe = dataclasses.replace(
        recipe, calibration=dataclasses.replace(recipe.calibration, images=images, seed=seed)
    )
    budget = parse_size(memory)
    check_target(out_dir, overwrite=overwrite)
    with claim_output(out_dir, overwrite=overwrite) as output:
        data = open_calibration(calibration, images, seed, ignore_label)
        boxes = None if detections is None else str(detections)
        source = Source(model, calibration, boxes, ignore_label)
        found = None if detections is None else load_detections(detections, data)
        check_data = None if check == NO_CHECK else open_labelled(check, "--check", check_images)
        float_model, processor = load_torch(model, device)
        if quantization_config_of(float_model) is not None:
            raise ValueError(f"{model} is quantized already; quantize the float model")
        if check_images is None:
            check_images = 24 if float_model.config.vision_config.image_size <= 512 else 2
        # Before the long work, so that nothing wrong with this data can come after it.
        before = (
            None if check_data is None else _score(float_model, processor, check_data, check_images, "float")
        )
        log = _quantize_into(
            output, float_model, processor, recipe, data, detections=found, source=source, memory=budget
        )
        with busy("reading the checkpoint back"):
            reloaded = load_checkpoint(output.staged, device=float_model.device)
        checked = None
        if check_data is not None and before is not None:
            after = _score(reloaded, processor, check_data, check_images, "quantized")
            checked = Scored(check_data, CHECK_TASK, after, before)
        _add_report(output.staged, reloaded, checked)
        output.place_folder()
    say(f"checkpoint: {out_dir}")
    shown = count_phrase(log.images, "images")
    say(f"calibrated on {shown} (seed {seed}) of {data.name}, {count_phrase(log.prompts, 'prompts')}")
    print_left_out(log.skipped, log.notes, "calibration: ")
    if deploy:
        print_substitutions(recipe)
    scores = None if checked is None or checked.float is None else (checked.float, checked.quantized)
    print_summary(take_inventory(reloaded), out_dir, scores)
    say(f"report: {out_dir / PAGE}")
    if scores is not None:
        say(f"picture: {out_dir / PICTURE}")


def _add_report(folder: Path, reloaded: SamModel, checked: Scored | None) -> None:
    """Write the picture and the short report of a checkpoint."""
    if checked is not None and checked.float is not None:
        scores = (checked.float, checked.quantized)
        with busy("drawing the comparison"):
            difference = task_difference(checked.task, *scores)
            chosen = median_and_worst(difference)
            drawn = draw_side_by_side(checked.dataset, checked.task, difference, *scores, chosen)
            write_png(folder / PICTURE, drawn)
    with busy("writing the report"):
        write_report(collect(folder, reloaded, checked), folder / PAGE)


def _quantize_into(
    output: Output,
    model: SamModel,
    processor: SamProcessor,
    recipe: Recipe,
    data: Dataset,
    *,
    detections: Detections | None,
    source: Source,
    memory: int,
) -> QuantizationLog:
    """Quantize and write the checkpoint with its log to the staging folder."""
    with progress_bars() as bars:
        result = saqsam.quantize(
            model,
            processor,
            recipe,
            data,
            detections=detections,
            memory=memory,
            resume_dir=output.unfinished,
            progress=stage_bars(bars),
        )
    with busy("writing the checkpoint"):
        # Not `result.save`: the finished steps are kept until the checkpoint is verified and in place.
        save_checkpoint(result.model, processor, output.staged)
        write_log(result.log, recipe, output.staged, source)
    return result.log


def _recipe(
    method: str, bits: str, effort: str, steps: int | None, settings: Sequence[str], *, deploy: str | None
) -> Recipe:
    """The recipe that the options describe."""
    recipe = recipe_for(method, bits, effort)
    if deploy is not None:
        recipe = deployable(recipe, deploy)
    recipe = with_settings(recipe, settings)
    if steps is not None:
        if recipe.reconstruction is None:
            raise ValueError(f"--steps: {method} learns nothing")
        recipe = dataclasses.replace(
            recipe, reconstruction=dataclasses.replace(recipe.reconstruction, steps=steps)
        )
    return recipe


def segment(
    model: str,
    image: Path,
    path: Path,
    *,
    boxes: Sequence[Prompt],
    points: Sequence[Prompt],
    device: str,
    runtime: str | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Segment from boxes and points, and draw the masks into `path`."""
    picture = _read_picture(image, path)
    with claim_output(path, overwrite=overwrite) as output:
        sam, processor, _ = open_model(model, device, runtime, threads)
        predictor = Predictor(sam, processor)
        with busy(f"segmenting {image}"):
            predictor.set_image(picture)
            found = [predictor.predict(box=np.array(b), multimask_output=False) for _, b in boxes]
            found += [
                predictor.predict(np.array([p]), np.array([1]), multimask_output=True) for _, p in points
            ]
            best = [int(ious.argmax()) for _, ious, _ in found]  # of one mask: that one
            masks = np.stack([masks[i] for (masks, _, _), i in zip(found, best, strict=True)]).astype(bool)
            output.write(png_bytes(overlay_masks(picture, masks)))
    table = result_table("prompt", "predicted IoU", "pixels", right=2)
    prompts = [f"box {text}" for text, _ in boxes] + [f"point {text}" for text, _ in points]
    for name, mask, (_, ious, _), i in zip(prompts, masks, found, best, strict=True):
        table.add_row(name, f"{ious[i]:.3f}", f"{mask.sum():,}")
    out.print(table)
    say(f"picture: {path}")
    if runtime == TORCH_INTEGER:
        print_integers(measure_integers(sam))


def segment_everything(
    model: str,
    image: Path,
    path: Path,
    *,
    points_per_side: int | None,
    pred_iou: float | None,
    stability: float | None,
    device: str,
    runtime: str | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Find masks of everything, and draw them into `path`, smaller ones on top."""
    options = generator_options(points_per_side, pred_iou, stability)
    picture = _read_picture(image, path)
    with claim_output(path, overwrite=overwrite) as output:
        sam, processor, _ = open_model(model, device, runtime, threads)
        with busy(f"segmenting {image}"):
            found = MaskGenerator(Predictor(sam, processor), options).generate(picture)
            if not found:
                raise ValueError(
                    f"no mask is rated above --pred-iou {options.pred_iou_thresh} with a stability above --stability "
                    f"{options.stability_score_thresh}; lower them"
                )
            found.sort(key=lambda one: -one.area)
            output.write(png_bytes(overlay_masks(picture, np.stack([one.mask() for one in found]))))
    say(f"{len(found)} masks from {options.points_per_side}^2 points")
    say(f"picture: {path}")
    if runtime == TORCH_INTEGER:
        print_integers(measure_integers(sam))


def _read_picture(image: Path, path: Path) -> NDArray[np.uint8]:
    """The picture to segment; what is drawn can be written to `path`."""
    picture = read_image(image)
    check_file_writable(path)
    return picture


def inspect(folder: Path, *, json_file: Path | None, overwrite: bool) -> None:
    """Show what is in a checkpoint."""
    if is_export(folder):
        raise ValueError(f"{folder} is an export; inspect the checkpoint that it was made of")
    if json_file is not None:
        check_file_writable(json_file)
    with claim_optional(json_file, overwrite=overwrite) as output:
        with busy(f"reading {folder}"):
            model = load_checkpoint(folder)
            inventory, layers = take_inventory(model), find_integer_layers(model)
        if output is not None:
            content = {**inventory.to_dict(), "integer_layers": dataclasses.asdict(layers)}
            output.write(json_bytes(content))
    print_inventory(inventory, str(folder))
    print_integer_layers(layers)
    if json_file is not None:
        say(f"written: {json_file}")


def export(
    checkpoint: Path,
    out_dir: Path,
    *,
    format: str,
    single_mask: bool,
    runtime: str | None,
    min_parity: float,
    overwrite: bool,
) -> None:
    """Write files for another runtime, judge them there, and put them in place if they compute torch's masks."""
    check_export(format, out_dir, overwrite=overwrite)
    runtimes = runtimes_to_judge(format, None if runtime is None else [runtime], min_parity)
    with claim_output(out_dir, overwrite=overwrite) as output:
        folder = output.staged
        model, processor = load_torch(str(checkpoint), "cpu")
        with busy(f"writing {out_dir}"):
            manifest = export_model(model, processor, folder, format=format, single_mask=single_mask)
        data = open_dataset(SCENES, limit=PARITY_IMAGES)
        with progress_bars() as bars:
            found = verify_export(
                folder,
                model,
                processor,
                data,
                min_parity=min_parity,
                runtimes=None if runtime is None else runtimes,
                progress=bar(bars, f"comparing {' and '.join(runtimes)} with torch", PARITY_IMAGES),
            )
        write_json(folder / "parity.json", parity_content(found, min_parity))
        output.place_folder()
    sizes = {name: (out_dir / name).stat().st_size for name in manifest.files}
    print_export(manifest, sizes, take_inventory(model), found)
    say(f"export: {out_dir}")


def _score(model: SamModel, processor: SamProcessor, data: Dataset, count: int, name: str) -> Evaluation:
    with progress_bars() as bars:
        progress = bar(bars, f"scoring, {name}", min(count, len(data)))
        return saqsam.evaluate(model, processor, data, tasks=[CHECK_TASK], limit=count, progress=progress)
