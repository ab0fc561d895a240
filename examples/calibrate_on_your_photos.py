"""Calibrate on your own images: they should look like those that the 4-bit model will segment.

    python examples/calibrate_on_your_photos.py my_photos/
    python examples/calibrate_on_your_photos.py my_coco/ --score other_coco/

`my_photos/` is a folder of images. They need no labels: the model's own confident masks provide the prompts.
`my_coco/` holds `images/` and `annotations.json` (COCO instances), whose boxes are the prompts. Only annotated
images can be scored, and they should not be calibration images. `coco/val2017` beside `coco/annotations/`
works for both.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import saqsam

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("photos", type=Path)
parser.add_argument("--score", type=Path, help="annotated images to score the float and the 4-bit model on")
parser.add_argument("--model", default="sam-mini")
parser.add_argument("--images", type=int, default=8, help="calibration images; 32 give better masks")
parser.add_argument("--out", type=Path, default=Path("out/examples/my_photos"))
args = parser.parse_args()

photos = saqsam.open_dataset(args.photos)
model, processor = saqsam.load(args.model)
recipe = saqsam.recipe_for("mse", "w4a4")
# The seed alone decides which images are drawn, so the result is reproducible.
recipe = replace(
    recipe, calibration=replace(recipe.calibration, images=min(args.images, len(photos)), seed=0)
)
quantized = saqsam.quantize(model, processor, recipe, photos)
quantized.save(args.out, overwrite=True)
labels = len(photos[0].instances)
print(f"calibrated on {recipe.calibration.images} of {len(photos)} images of {photos.name}, ", end="")
print("prompted by their boxes" if labels else "prompted by the model's own masks")

if args.score:
    data = saqsam.open_dataset(args.score)
    for name, source in (("float", args.model), ("4-bit", args.out)):  # the 4-bit model is reloaded from disk
        result = saqsam.evaluate(*saqsam.load(source), data, limit=16)
        metrics = result.metrics["prompt"]
        print(f"{name}: mean IoU {metrics['miou']:.4f} on {metrics['instances']} objects")
print(f"checkpoint: {args.out}")
