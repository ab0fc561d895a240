"""Calibrate on photographs of your own: a 4-bit model should see what it will be used on.

    python examples/calibrate_on_your_photos.py my_photos/
    python examples/calibrate_on_your_photos.py my_coco/ --score other_coco/

`my_photos/` is a folder of pictures. They need no labels: the model's own confident masks become the prompts.
`my_coco/` holds `images/` and `annotations.json` (COCO instances), whose boxes become the prompts; only such a folder
can be scored on, and it should be another one than that of the calibration. `coco/val2017` beside `coco/annotations/`
does for either.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import saqsam

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photos", type=Path)
parser.add_argument("--score", type=Path, help="annotated images to compare float and 4-bit masks on")
parser.add_argument("--model", default="sam-mini")
parser.add_argument("--images", type=int, default=8, help="how many to calibrate on; 32 are better")
parser.add_argument("--out", type=Path, default=Path("out/examples/my_photos"))
args = parser.parse_args()

photos = saqsam.open_dataset(args.photos)
model, processor = saqsam.load(args.model)
recipe = saqsam.recipe_for("mse", "w4a4")
# Which of the photographs are drawn depends on the seed alone, so the result can be made again.
recipe = replace(
    recipe, calibration=replace(recipe.calibration, images=min(args.images, len(photos)), seed=0)
)
quantized = saqsam.quantize(model, processor, recipe, photos)
saqsam.save_checkpoint(quantized, processor, args.out, overwrite=True)
labels = len(photos[0].instances)
print(f"calibrated on {recipe.calibration.images} of {len(photos)} pictures of {photos.name}, ", end="")
print("prompted by their boxes" if labels else "prompted by the model's own masks")

if args.score:
    data = saqsam.open_dataset(args.score)
    for name, source in (("float", args.model), ("4-bit", args.out)):  # the latter reloaded from disk
        result = saqsam.evaluate(*saqsam.load(source), data, limit=16)
        metrics = result.metrics["prompt"]
        print(f"{name}: mean IoU {metrics['miou']:.4f} on {metrics['instances']} objects")
print(f"checkpoint: {args.out}")
