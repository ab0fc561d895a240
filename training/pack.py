"""Pack annotated photographs and procedural scenes into one file that the training reads.

A pack is an `.npz` without pickles. It holds every image as JPEG or WebP bytes (long side limited) and every object
mask as a PNG of its own bounding box, so that a training set of thousands of pictures is one file of a few tens of
megabytes that can be carried to another machine.

    python training/pack.py photos.npz --coco DATA/objects_train DATA/coco_train DATA/nuclei_train
    python training/pack.py scenes.npz --scenes 2000

Arrays of a pack (n images, m instances):
    jpeg, jpeg_end          uint8 bytes of all images one after another, JPEG or WebP; int64 [n] end offsets
    mask, mask_end          the same for the masks' PNGs; int64 [m] end offsets
    instance                int32 [m, 5]: image index, x, y, width, height of the mask's box, in packed pixels
    image                   int32 [n, 3]: height, width, index into `sources`
    image_id                int64 [n]: the image's id in its source
    sources                 str [s]
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from saqsam.data.coco import CocoDataset
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.data.types import Dataset

MIN_MASK_PIXELS = 12
"""Smaller objects (in packed pixels) carry no boundary to learn from."""

FORMATS = {"jpeg": (".jpg", cv2.IMWRITE_JPEG_QUALITY), "webp": (".webp", cv2.IMWRITE_WEBP_QUALITY)}
"""File extension and quality option of OpenCV."""

Annotated = tuple[str, int, np.ndarray, list[np.ndarray]]
"""Source, image id, HWC uint8 RGB, masks as HW uint8 in {0, 1}."""


def read(dataset: Dataset, source: str, indices: Sequence[int] | None = None) -> Iterator[Annotated]:
    """Yield the pictures of a dataset that have objects, without crowds; all, or those at the given indices."""
    for index in track(range(len(dataset)) if indices is None else indices, description=source):
        sample = dataset[index]
        masks = [i.mask().astype(np.uint8) for i in sample.instances if not i.is_crowd]
        if masks:
            yield source, sample.image_id, sample.image, masks


def selected(dataset: CocoDataset, held_back: Collection[int], only: str | None, part: str) -> list[int]:
    """Return the indices of a part ("1/3") of the pictures: of the held-back ones, of the others, or of all."""
    number, parts = (int(value) for value in part.split("/"))
    if not 1 <= number <= parts:
        raise ValueError(f"--part {part}: expected I/N with 1 <= I <= N")
    wanted = {None: (True, False), "held-back": (True,), "training": (False,)}[only]
    indices = [i for i, image_id in enumerate(dataset.image_ids) if (image_id in held_back) in wanted]
    return indices[number - 1 :: parts]


def pack(
    samples: Iterable[Annotated], max_side: int, quality: int, image_format: str = "jpeg"
) -> dict[str, np.ndarray]:
    """Encode the samples and return the arrays described at the top of this file."""
    jpegs, masks, instances, images, ids = [], [], [], [], []
    sources: list[str] = []
    extension, flag = FORMATS[image_format]
    for source, image_id, image, image_masks in samples:
        scale = min(1.0, max_side / max(image.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if scale < 1 else image
        kept = []
        for mask in image_masks:
            soft = cv2.resize(mask * 255, (width, height), interpolation=cv2.INTER_AREA)
            if int((soft > 127).sum()) < MIN_MASK_PIXELS:
                continue
            x, y, w, h = cv2.boundingRect((soft > 0).astype(np.uint8))
            kept.append(
                cv2.imencode(".png", soft[y : y + h, x : x + w], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].ravel()
            )
            instances.append((len(images), x, y, w, h))
        if not kept:
            continue
        masks += kept
        if source not in sources:
            sources.append(source)
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        jpegs.append(cv2.imencode(extension, bgr, [flag, quality])[1].ravel())
        images.append((height, width, sources.index(source)))
        ids.append(image_id)
    return {
        "jpeg": np.concatenate(jpegs),
        "jpeg_end": np.cumsum([len(j) for j in jpegs], dtype=np.int64),
        "mask": np.concatenate(masks),
        "mask_end": np.cumsum([len(m) for m in masks], dtype=np.int64),
        "instance": np.array(instances, np.int32),
        "image": np.array(images, np.int32),
        "image_id": np.array(ids, np.int64),
        "sources": np.array(sources),
    }


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--coco", type=Path, nargs="*", default=[], help="folders with images/ and annotations.json"
    )
    parser.add_argument("--scenes", type=int, default=0, help="number of procedural scenes")
    parser.add_argument("--seed", type=int, default=1_000_003, help="of the scenes; evaluation uses 0")
    parser.add_argument("--max-side", type=int, default=640)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument(
        "--format", choices=list(FORMATS), default="jpeg", help="webp takes two thirds of the bytes"
    )
    parser.add_argument("--only", choices=["held-back", "training"], help="pack only these photographs")
    parser.add_argument(
        "--part", default="1/1", help="pack part I/N of the photographs: every Nth from the Ith on"
    )
    return parser


def main() -> None:
    """Run the command line."""
    args = parser().parse_args()

    held_back = json.loads((Path(__file__).parent / "held_back.json").read_text())
    parts = []
    for folder in args.coco:
        dataset = CocoDataset(folder / "images", folder / "annotations.json")
        indices = selected(dataset, held_back.get(folder.name, []), args.only, args.part)
        parts.append(read(dataset, folder.name, indices))
    if args.scenes:
        parts.append(read(ScenesDataset(count=args.scenes, seed=args.seed), "scenes"))
    arrays = pack(itertools.chain(*parts), args.max_side, args.quality, args.format)
    partial = args.out.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(args.out)
    megabytes = args.out.stat().st_size / 1e6
    print(f"{args.out}: {len(arrays['image'])} images, {len(arrays['instance'])} masks, {megabytes:.1f} MB")


if __name__ == "__main__":
    main()
