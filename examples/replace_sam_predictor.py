"""Replace `segment_anything.SamPredictor` with a 4-bit checkpoint without changing the calls.

python examples/quantize_and_segment.py      # writes the checkpoint
python examples/replace_sam_predictor.py
"""

import argparse

import numpy as np

import saqsam

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", nargs="?", default="out/examples/w4a4")
args = parser.parse_args()

# Before:
#     from segment_anything import SamPredictor, sam_model_registry
#     predictor = SamPredictor(sam_model_registry["vit_b"](checkpoint="sam_vit_b_01ec64.pth"))
# After (`saqsam.load` also takes the official .pth):
predictor = saqsam.Predictor(*saqsam.load(args.checkpoint))

scene = saqsam.open_dataset("scenes", limit=1)[0]
target = max(scene.instances, key=lambda instance: instance.area)
truth = target.mask()


def report(prompt, mask):
    print(f"{prompt}: {mask.sum()} pixels, IoU {(mask & truth).sum() / (mask | truth).sum():.3f}")


predictor.set_image(scene.image)  # HWC uint8 RGB; for cv2.imread: image_format="BGR"

# A box gives one mask.
masks, ious, low_res = predictor.predict(box=np.array(target.box), multimask_output=False)
report("box", masks[0])

# A point is ambiguous and gives three masks; the model predicts the IoU of each.
rows, columns = np.nonzero(truth)
middle = len(rows) // 2
click = np.array([[columns[middle], rows[middle]]])  # x, y
masks, ious, low_res = predictor.predict(click, np.array([1]))
best = ious.argmax()
report("point", masks[best])

# Refine the best mask with a background point, which has label 0.
corner = np.argwhere(~scene.instances[0].mask() & ~truth)[0][::-1]
masks, ious, low_res = predictor.predict(
    np.vstack([click, corner]), np.array([1, 0]), mask_input=low_res[best][None], multimask_output=False
)
report("foreground point, background point, mask", masks[0])
