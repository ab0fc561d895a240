"""Load a 4-bit checkpoint through `transformers`, after `import saqsam`.

python examples/quantize_and_segment.py      # writes the checkpoint
python examples/transformers_native.py
"""

import argparse

import torch
from transformers import SamModel, SamProcessor

import saqsam  # registers the checkpoint format with transformers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", nargs="?", default="out/examples/w4a4")
args = parser.parse_args()

model = SamModel.from_pretrained(args.checkpoint)  # needs no float weights
processor = SamProcessor.from_pretrained(args.checkpoint)

scene = saqsam.open_dataset("scenes", limit=1)[0]
boxes = [list(instance.box) for instance in scene.instances]
inputs = processor(images=scene.image, input_boxes=[boxes], return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs, multimask_output=False)
(masks,) = processor.post_process_masks(  # [P, 1, H, W] bool, at image resolution
    outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
)
for instance, mask, predicted in zip(scene.instances, masks[:, 0], outputs.iou_scores[0, :, 0], strict=True):
    truth = torch.from_numpy(instance.mask())
    iou = (mask & truth).sum() / (mask | truth).sum()
    print(f"{int(mask.sum())} pixels, IoU {iou:.3f}, predicted {predicted:.3f}")

# The weights are 4-bit codes, packed into bytes.
codes = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(".codes")}
stored = sum(codes[name].numel() for name in codes)
print(f"{len(codes)} packed weights, {stored} bytes; recipe {saqsam.recipe_of(model).name}")
