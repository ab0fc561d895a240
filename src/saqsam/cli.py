"""The command line: `saqsam quantize | evaluate | segment | inspect`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import torch
import transformers
import typer
from transformers import SamModel, SamProcessor

import saqsam
from saqsam._version import __version__
from saqsam.checkpoint import check_target, load_checkpoint, quantization_config_of, save_checkpoint
from saqsam.comparison import draw_comparison
from saqsam.data.datasets import SCENES, SCENES_COUNT, Dataset, open_dataset
from saqsam.data.images import ImageFolder, read_image
from saqsam.evaluate import Evaluation, PromptKind
from saqsam.inventory import Inventory, take_inventory
from saqsam.models import load
from saqsam.output import check_file_writable, check_writable, write_png, write_whole
from saqsam.predictor import Predictor
from saqsam.presets import recipe_for
from saqsam.tables import print_evaluation, print_inventory, print_summary
from saqsam.terminal import bar, busy, guarded, out, progress_bars, result_table, say, stage_bars
from saqsam.visualize import overlay_masks

app = typer.Typer(
    name="saqsam",
    help="Quantize Segment Anything Models to real low-bit integers, and use the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CALIBRATION_SCENES_SEED = 1_000_000
"""Added to the seed of scenes used for calibration: those of seed 0 are for evaluation."""
NO_CHECK = "none"

DATA_HELP = (
    "scenes (made by the package), a folder with images/ and annotations.json (COCO format), or an image folder "
    "of a COCO root, such as ROOT/val2017."
)
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, mps, ...")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="sam-mini, a checkpoint of saqsam, a transformers folder or hub id, or an official sam_vit_*.pth.",
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to it.")]


def main() -> None:
    """Entry point."""
    # In a process of our own, what transformers logs for programmers does not mix with our output.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    app(prog_name="saqsam")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"saqsam {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
@guarded
def quantize(
    model: ModelArgument = "sam-mini",
    *,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="The checkpoint to write.")],
    method: Annotated[str, typer.Option(metavar="NAME", help="min-max, percentile or mse.")] = "mse",
    bits: Annotated[
        str, typer.Option(metavar="wXaY", help="X bits for weights, Y for activations, 2 to 8 each.")
    ] = "w4a4",
    calibration: Annotated[
        str,
        typer.Option(
            metavar="DATA", help="What to set ranges on: as evaluate --data, or any folder of images."
        ),
    ] = SCENES,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Calibration images.")] = 32,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Which images and prompts are drawn.")] = 0,
    check: Annotated[
        str,
        typer.Option(metavar="DATA", help="Score float and quantized model on it afterwards; none: do not."),
    ] = SCENES,
    check_images: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Images of --check.", show_default="24; 2 for inputs above 512 px"
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at --out.")] = False,
) -> None:
    """Quantize a SAM, write a packed checkpoint, and compare what was written with the float model.

    Ends with sizes, mean IoU and a picture, all computed from the checkpoint as reloaded from disk.
    """
    recipe = recipe_for(method, bits)
    recipe = dataclasses.replace(
        recipe, calibration=dataclasses.replace(recipe.calibration, images=images, seed=seed)
    )
    check_target(out_dir, overwrite=overwrite)
    check_writable(out_dir)
    count = max(images, SCENES_COUNT) if calibration == SCENES else None
    data = open_dataset(calibration, limit=count, seed=CALIBRATION_SCENES_SEED + seed)
    check_data = None if check == NO_CHECK else _open_labelled(check, "--check", check_images)
    float_model, processor = _load(model, device)
    if quantization_config_of(float_model) is not None:
        raise ValueError(f"{model} is quantized already; quantize the float model")
    if check_images is None:
        check_images = 24 if float_model.config.vision_config.image_size <= 512 else 2
    # Before the long work, so that nothing wrong with this data can come after it.
    before = None if check_data is None else _score(float_model, processor, check_data, check_images, "float")
    with progress_bars() as bars:
        quantized = saqsam.quantize(float_model, processor, recipe, data, progress=stage_bars(bars))
    with busy(f"writing {out_dir}"):
        save_checkpoint(quantized, processor, out_dir, overwrite=overwrite)
        del quantized
        reloaded = load_checkpoint(out_dir, device=float_model.device)
    say(f"checkpoint: {out_dir}")
    if check_data is None or before is None:
        print_summary(take_inventory(reloaded), out_dir)
        return
    after = _score(reloaded, processor, check_data, check_images, "quantized")
    with busy("drawing the comparison"):
        picture = draw_comparison(float_model, reloaded, processor, check_data, before, after)
        write_png(out_dir / "comparison.png", picture)
    print_summary(take_inventory(reloaded), out_dir, (before, after))
    say(f"picture: {out_dir / 'comparison.png'}")


@app.command()
@guarded
def evaluate(
    model: ModelArgument = "sam-mini",
    *,
    data: Annotated[str, typer.Option(metavar="DATA", help=DATA_HELP)] = SCENES,
    prompt: Annotated[
        str, typer.Option(metavar="box|point", help="Each object's box, or the point deepest inside it.")
    ] = "box",
    detections: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="COCO results of any detector: adds mask AP on its boxes."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N images.")] = None,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a float model or a checkpoint: mean IoU, and COCO mask AP with --detections."""
    if prompt not in get_args(PromptKind):
        raise ValueError(f"--prompt: expected box or point, got {prompt!r}")
    if json_file is not None:
        check_file_writable(json_file)
    dataset = _open_labelled(data, "--data", limit)
    sam, processor = _load(model, device)
    with progress_bars() as bars:
        result = saqsam.evaluate(
            sam,
            processor,
            dataset,
            prompt=cast(PromptKind, prompt),
            detections=detections,
            limit=limit,
            progress=bar(bars, f"evaluating on {dataset.name}"),
        )
    inventory = None if quantization_config_of(sam) is None else take_inventory(sam)
    if json_file is not None:
        _write_json(json_file, {"model": model, **_describe(inventory), **result.to_dict()})
    print_evaluation(result, model, inventory)


def _describe(inventory: Inventory | None) -> dict[str, Any]:
    """What a row of results says of a model beside its name; nothing but float for a float one."""
    if inventory is None:
        return {"recipe": "float"}
    return {
        "recipe": inventory.name,
        "share_of_bytes": inventory.share_of_bytes(),
        "share_of_macs": inventory.share_of_macs(),
    }


@app.command()
@guarded
def segment(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="sam-mini, a checkpoint, or any other model.")
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Picture to segment.")],
    *,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="x0,y0,x1,y1", help="Box around an object, in pixels; repeatable."),
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="x,y", help="Point on an object, in pixels; repeatable.")
    ] = None,
    out_png: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="PNG", help="Picture to write.", show_default="beside IMAGE, *.masks.png"
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Segment objects of a picture from boxes and points; each gives a mask of its own."""
    boxes = [_numbers(text, 4, "--box", "x0,y0,x1,y1") for text in box or []]
    points = [_numbers(text, 2, "--point", "x,y") for text in point or []]
    if not boxes and not points:
        raise ValueError("give at least one --box x0,y0,x1,y1 or --point x,y")
    picture = read_image(image)
    path = out_png or image.with_name(f"{image.stem}.masks.png")
    _check_picture_target(path, image)
    sam, processor = _load(model, device)
    predictor = Predictor(sam, processor)
    with busy(f"segmenting {image}"):
        predictor.set_image(picture)
        found = [predictor.predict(box=np.array(b), multimask_output=False) for b in boxes]
        found += [predictor.predict(np.array([p]), np.array([1]), multimask_output=True) for p in points]
        best = [int(ious.argmax()) for _, ious, _ in found]  # of one mask: that one
        masks = np.stack([masks[i] for (masks, _, _), i in zip(found, best, strict=True)]).astype(bool)
        write_png(path, overlay_masks(picture, masks))
    table = result_table("prompt", "predicted IoU", "pixels", right=2)
    prompts = [f"box {text}" for text in box or []] + [f"point {text}" for text in point or []]
    for name, mask, (_, ious, _), i in zip(prompts, masks, found, best, strict=True):
        table.add_row(name, f"{ious[i]:.3f}", f"{mask.sum():,}")
    out.print(table)
    say(f"picture: {path}")


def _check_picture_target(path: Path, image: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a name that ends in .png, got {path}")
    if path.exists() and path.samefile(image):
        raise ValueError(f"--out: {path} is the picture to segment; choose another name")
    check_file_writable(path)


def _numbers(text: str, count: int, option: str, form: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"{option} must look like {form}, got {text!r}")
    return values


@app.command()
@guarded
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint of saqsam.")],
    *,
    json_file: JsonOption = None,
) -> None:
    """Show what is quantized to how many bits: ranges, bytes and multiply-accumulates of each part."""
    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {folder}")
    if json_file is not None:
        check_file_writable(json_file)
    with busy(f"reading {folder}"):
        inventory = take_inventory(load_checkpoint(folder))
    if json_file is not None:
        _write_json(json_file, inventory.to_dict())
    print_inventory(inventory, str(folder))


def _load(model: str, device: str) -> tuple[SamModel, SamProcessor]:
    with busy(f"loading {model}"):
        return load(model, device=_device(device))


def _device(name: str) -> str:
    """The device, tried out: torch finds out that one is not there only when it is used."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def _open_labelled(spec: str, option: str, limit: int | None) -> Dataset:
    """A data set that can be scored on, cut to `limit` images; scenes are made longer for it."""
    dataset = open_dataset(spec, limit=limit)
    if isinstance(dataset, ImageFolder):
        raise ValueError(f"{option} {spec}: images without annotations.json cannot be scored on")
    return dataset


def _score(model: SamModel, processor: SamProcessor, data: Dataset, count: int, name: str) -> Evaluation:
    with progress_bars() as bars:
        progress = bar(bars, f"scoring, {name}")
        return saqsam.evaluate(model, processor, data, limit=count, progress=progress)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
