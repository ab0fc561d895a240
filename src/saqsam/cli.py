"""The command line: `saqsam quantize | evaluate | segment | inspect`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from saqsam._version import __version__

app = typer.Typer(
    name="saqsam",
    help="Quantize Segment Anything Models to real low-bit integers, and use the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out = Console()
err = Console(stderr=True)

WRONG_USE = 2
CALIBRATION_SCENES_SEED = 1_000_000
"""Added to the seed of scenes used for calibration: those of seed 0 are for evaluation."""

DataOption = Annotated[
    str,
    typer.Option(
        help="`scenes` (made by the package), a folder with images/ and annotations.json (COCO format), or an image "
        "folder of a COCO root such as ROOT/val2017."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        help="sam-mini, a checkpoint of saqsam, a transformers folder or hub id, or an official sam_vit_*.pth.",
        show_default=True,
    ),
]


def main() -> None:
    """Entry point."""
    app()


def _guard(command: Callable[..., None]) -> Callable[..., None]:
    """Turn wrong use into one clear line and exit code 2, and the library's warnings into lines of their own."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from saqsam.calibrate import CalibrationWarning

        with warnings.catch_warnings():
            # The library's own notes are shown; those of the packages below it are not for users.
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", CalibrationWarning)
            warnings.showwarning = _note
            try:
                command(*args, **kwargs)
            except (ValueError, OSError) as error:
                err.print(f"[red]error:[/] {escape(one_line(error))}", highlight=False, soft_wrap=True)
                raise typer.Exit(WRONG_USE) from None
            except KeyboardInterrupt:
                err.print("interrupted; nothing was written")
                raise typer.Exit(130) from None

    return guarded


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    err.print(f"[yellow]note:[/] {escape(str(message))}", highlight=False, soft_wrap=True)


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bars:
        yield bars


def _bar(bars: Progress, description: str) -> Callable[[int, int], None]:
    task = bars.add_task(description, total=None)
    return lambda done, total: bars.update(task, completed=done, total=total)


def _stage_bars(bars: Progress) -> Callable[[str, int, int], None]:
    known: dict[str, Callable[[int, int], None]] = {}

    def update(stage: str, done: int, total: int) -> None:
        if stage not in known:
            known[stage] = _bar(bars, stage)
        known[stage](done, total)

    return update


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        out.print(f"saqsam {__version__}", highlight=False)
        raise typer.Exit


@app.command()
@_guard
def quantize(
    model: ModelArgument = "sam-mini",
    *,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint to write.")],
    method: Annotated[str, typer.Option(help="min-max, percentile or mse.")] = "mse",
    bits: Annotated[
        str, typer.Option(help="Bits of weights and activations: w4a4, w6a6, w8a8, w4a8, ...")
    ] = "w4a4",
    calibration: Annotated[
        str, typer.Option(help="Images to set ranges on: as --data of evaluate, or any folder of images.")
    ] = "scenes",
    images: Annotated[int, typer.Option(min=1, help="Number of calibration images.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Which calibration images and prompts are drawn.")] = 0,
    check: Annotated[
        str, typer.Option(help="Data to score float and quantized model on afterwards; `none` for no check.")
    ] = "scenes",
    check_images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of the check; by default 24, or 2 for inputs above 512 px."),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out.")] = False,
) -> None:
    """Quantize a SAM, write it as a packed checkpoint, reload that and compare it with the float model.

    The table and the picture at the end are computed from the checkpoint on disk.
    """
    import dataclasses

    from saqsam import load, open_dataset, recipe_for, save_checkpoint
    from saqsam import quantize as quantize_model

    recipe = recipe_for(method, bits)
    recipe = dataclasses.replace(
        recipe, calibration=dataclasses.replace(recipe.calibration, images=images, seed=seed)
    )
    if out_dir.exists() and not overwrite:
        raise ValueError(f"{out_dir} exists; choose another --out, or replace it with --overwrite")
    data = open_dataset(calibration, seed=CALIBRATION_SCENES_SEED + seed)
    check_data = None if check == "none" else open_dataset(check)
    with err.status(f"loading {model}"):
        float_model, processor = load(model, device=_device(device))
    with _progress() as bars:
        quantized = quantize_model(float_model, processor, recipe, data, progress=_stage_bars(bars))
    save_checkpoint(quantized, processor, out_dir, overwrite=overwrite)
    del quantized
    _summarise(float_model, processor, out_dir, check_data, check_images, _device(device))


def _summarise(
    float_model: Any, processor: Any, folder: Path, data: Any, count: int | None, device: str
) -> None:
    """Print sizes and, with data, scores of the float model and of the checkpoint as reloaded from disk."""
    from saqsam import evaluate as evaluate_model
    from saqsam import load_checkpoint
    from saqsam.inventory import take_inventory

    reloaded = load_checkpoint(folder, device=device)
    inventory = take_inventory(reloaded)
    on_disk = sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".safetensors")
    table = Table(title=inventory.name, title_justify="left")
    for column in ("", "float", "quantized", ""):
        table.add_column(column, justify="left" if not column else "right")
    ratio = f"{inventory.float32_bytes / on_disk:.2f}x smaller"
    table.add_row("bytes on disk", _megabytes(inventory.float32_bytes), _megabytes(on_disk), ratio)
    picture = None
    if data is not None:
        if count is None:
            count = 24 if float_model.config.vision_config.image_size <= 512 else 2
        with _progress() as bars:
            scores = [
                evaluate_model(
                    m, processor, data, limit=count, progress=_bar(bars, f"scoring the {name} model")
                )
                for name, m in (("float", float_model), ("quantized", reloaded))
            ]
        before, after = (score.miou for score in scores)
        title = f"mean IoU, box prompts\n({scores[0].instances} objects, {scores[0].images} images of {data.name})"
        table.add_row(title, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
        picture = _write_comparison(float_model, reloaded, processor, data, scores, folder / "comparison.png")
    out.print(table)
    out.print(f"checkpoint: {folder}", highlight=False, soft_wrap=True)
    if picture is not None:
        out.print(f"picture:    {picture}", highlight=False, soft_wrap=True)


def _write_comparison(
    float_model: Any, quantized: Any, processor: Any, data: Any, scores: list[Any], path: Path
) -> Path:
    """Draw the median and the worst two images, by how much of the mean IoU was lost."""
    import numpy as np

    from saqsam import Predictor
    from saqsam.visualize import Comparison, comparison_picture

    change: dict[int, list[float]] = {}
    for before, after in zip(scores[0].scores, scores[1].scores, strict=True):
        change.setdefault(before.image_id, []).append(after.iou - before.iou)
    order = sorted(change, key=lambda image_id: float(np.mean(change[image_id])))
    wanted = dict.fromkeys([order[len(order) // 2], *order[:2]])
    samples = {s.image_id: s for s in (data[i] for i in range(scores[0].images)) if s.image_id in wanted}
    rows = []
    for image_id in wanted:
        sample = samples[image_id]
        boxes = np.array([i.box for i in sample.instances if not i.is_crowd])[:8]
        masks = []
        for model in (float_model, quantized):
            predictor = Predictor(model, processor)
            predictor.set_image(sample.image)
            masks.append(predictor.predict_batch(boxes=boxes, multimask_output=False)[0][:, 0].cpu().numpy())
        caption = f"mean IoU change of this image: {np.mean(change[image_id]):+.3f}"
        rows.append(Comparison(sample.image, boxes, masks[0], masks[1], caption))
    _write_png(comparison_picture(rows), path)
    return path


def _write_png(image: Any, path: Path) -> None:
    """Write a PNG that appears under its name only when whole."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    Image.fromarray(image).save(partial, format="PNG")
    partial.replace(path)


@app.command()
@_guard
def evaluate(
    model: ModelArgument = "sam-mini",
    *,
    data: DataOption = "scenes",
    prompt: Annotated[
        str, typer.Option(help="box (of each object) or point (deepest inside each object).")
    ] = "box",
    detections: Annotated[
        Path | None, typer.Option(help="COCO results JSON of any detector: adds mask AP on its boxes.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a float model or a checkpoint: mean IoU, and COCO mask AP with --detections."""
    from saqsam import evaluate as evaluate_model
    from saqsam import load, open_dataset

    if json is not None and not json.parent.is_dir():
        raise ValueError(f"--json: no folder {json.parent}")
    dataset = open_dataset(data)
    with err.status(f"loading {model}"):
        sam, processor = load(model, device=_device(device))
    with _progress() as bars:
        result = evaluate_model(
            sam,
            processor,
            dataset,
            prompt=prompt,  # type: ignore[arg-type]  # checked there
            detections=detections,
            limit=limit,
            progress=_bar(bars, f"evaluating on {dataset.name}"),
        )
    table = Table(
        title=f"{model} on {dataset.name}, {prompt} prompts", title_justify="left", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    table.add_row("mean IoU", f"{result.miou:.4f}")
    table.add_row("objects", str(result.instances))
    table.add_row("images", str(result.images))
    for name, value in result.ap.items():
        table.add_row(name, "-" if value is None else f"{value:.4f}")
    for reason, number in result.skipped.items():
        table.add_row(f"left out: {reason}", str(number))
    out.print(table)
    if json is not None:
        partial = json.with_name(f".{json.name}.partial")
        partial.write_text(result.to_json(), encoding="utf-8")
        partial.replace(json)


@app.command()
@_guard
def segment(
    model: Annotated[str, typer.Argument(help="sam-mini, a checkpoint, or any other model.")],
    image: Annotated[Path, typer.Argument(help="Picture to segment.")],
    *,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="x0,y0,x1,y1", help="A box around an object, in pixels; repeatable."),
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="x,y", help="A point on an object, in pixels; repeatable.")
    ] = None,
    out_png: Annotated[
        Path | None, typer.Option("--out", help="Picture to write; by default IMAGE.masks.png beside IMAGE.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Segment objects of a picture from boxes and points; each gives a mask of its own."""
    import numpy as np

    from saqsam import Predictor, load
    from saqsam.data.images import read_image
    from saqsam.visualize import overlay_masks

    boxes = [_numbers(text, 4, "--box", "x0,y0,x1,y1") for text in box or []]
    points = [_numbers(text, 2, "--point", "x,y") for text in point or []]
    if not boxes and not points:
        raise ValueError("give at least one --box x0,y0,x1,y1 or --point x,y")
    picture = read_image(image)
    with err.status(f"loading {model}"):
        sam, processor = load(model, device=_device(device))
    predictor = Predictor(sam, processor)
    with err.status("segmenting"):
        predictor.set_image(picture)
        found = [predictor.predict(box=np.array(b), multimask_output=False) for b in boxes]
        found += [predictor.predict(np.array([p]), np.array([1]), multimask_output=True) for p in points]
    best = [int(ious.argmax()) for _, ious, _ in found]
    masks = np.stack([masks[i] for (masks, _, _), i in zip(found, best, strict=True)]).astype(bool)
    path = out_png or image.with_name(f"{image.stem}.masks.png")
    _write_png(overlay_masks(picture, masks), path)
    table = Table("prompt", "predicted IoU", "pixels")
    prompts = [f"box {text}" for text in box or []] + [f"point {text}" for text in point or []]
    for name, mask, (_, ious, _), i in zip(prompts, masks, found, best, strict=True):
        table.add_row(name, f"{ious[i]:.3f}", str(int(mask.sum())))
    out.print(table)
    out.print(f"picture: {path}", highlight=False, soft_wrap=True)


def _numbers(text: str, count: int, option: str, form: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise ValueError(f"{option} must look like {form}, got {text!r}")
    return values


@app.command()
@_guard
def inspect(
    folder: Annotated[Path, typer.Argument(help="A checkpoint of saqsam.")],
) -> None:
    """Show what is quantized to how many bits: ranges, bytes and multiply-accumulates of each part.

    `range` spans the activation ranges of the part's quantizers; kB and share are of the tensors on disk; MMACs are
    millions of multiply-accumulates for one image and one box.
    """
    from saqsam import load_checkpoint
    from saqsam.inventory import mac_width, take_inventory

    if not folder.is_dir():
        raise ValueError(f"no checkpoint folder {folder}")
    inventory = take_inventory(load_checkpoint(folder))
    all_macs = sum(part.macs for part in inventory.parts)
    table = Table(title=escape(f"{inventory.name} ({folder})"), title_justify="left")
    for column in ("part", "bits", "range", "kB", "share", "MMACs", "share"):
        table.add_column(column, justify="left" if column in ("part", "bits") else "right", no_wrap=True)
    for part in inventory.parts:
        span = "" if part.low is None or part.high is None else f"{part.low:.3g} .. {part.high:.3g}"
        size = f"{part.bytes / 1e3:,.1f}", _percent(part.bytes / inventory.bytes)
        work = f"{part.macs / 1e6:,.1f}", _percent(part.macs / all_macs)
        table.add_row(part.part, mac_width(part), span, *size, *work)
    out.print(table)
    out.print(_share_line("bytes", inventory.share_of_bytes()), highlight=False)
    out.print(_share_line("MACs (1 image, 1 box)", inventory.share_of_macs()), highlight=False)
    ratio = inventory.float32_bytes / inventory.bytes
    out.print(f"{_megabytes(inventory.bytes)} of tensors, {ratio:.2f}x smaller than float32", highlight=False)


def _share_line(what: str, shares: dict[str, float]) -> str:
    return f"{what}: " + ", ".join(f"{width} {_percent(share)}" for width, share in shares.items())


if __name__ == "__main__":
    main()
