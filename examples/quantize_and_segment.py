"""Quantize a SAM to 4 bits, reload it from disk, and segment an image with the float and the 4-bit model.

python examples/quantize_and_segment.py                          # the bundled model on a synthetic scene
python examples/quantize_and_segment.py facebook/sam-vit-base --image photo.jpg --box 120,80,460,390
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import saqsam
from saqsam.data.images import read_image
from saqsam.viz.overlays import overlay_masks

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="sam-mini")
parser.add_argument("--image", help="image file; default: a synthetic scene")
parser.add_argument("--box", action="append", help="x0,y0,x1,y1 in pixels, with --image; repeatable")
parser.add_argument("--images", type=int, default=8, help="calibration images; 32 give better masks")
parser.add_argument("--out", type=Path, default=Path("out/examples/w4a4"))
args = parser.parse_args()

if args.image:
    image, boxes = read_image(args.image), [[float(x) for x in box.split(",")] for box in args.box or []]
else:
    scene = saqsam.open_dataset("scenes", limit=1)[0]
    image, boxes = scene.image, [instance.box for instance in scene.instances]

model, processor = saqsam.load(args.model)
recipe = saqsam.recipe_for("mse", "w4a4")
recipe = replace(recipe, calibration=replace(recipe.calibration, images=args.images))
# Calibrate on scenes other than the one segmented below. For your own images, see calibrate_on_your_photos.py.
calibration = saqsam.open_dataset("scenes", limit=args.images, seed=1)
result = saqsam.quantize(model, processor, recipe, calibration)
result.save(args.out, overwrite=True)

masks = {}
for name, source in (("float", args.model), ("quantized", args.out)):
    predictor = saqsam.Predictor(*saqsam.load(source))
    predictor.set_image(image)
    masks[name] = np.stack([predictor.predict(box=box, multimask_output=False)[0][0] for box in boxes])

for box, a, b in zip(boxes, masks["float"], masks["quantized"], strict=True):
    agreement = (a & b).sum() / max((a | b).sum(), 1)
    print(f"box {', '.join(f'{x:.0f}' for x in box)}: IoU of 4-bit and float mask {agreement:.3f}")
Image.fromarray(overlay_masks(image, masks["quantized"])).save(args.out / "masks.png")
print(f"checkpoint and masks: {args.out}")
