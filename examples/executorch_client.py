"""Segment an object from its box with an export and the ExecuTorch runtime, without saqsam.

python executorch_client.py EXPORT photo.jpg 120 80 460 390 mask.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from executorch.runtime import Runtime
from PIL import Image

folder, image, mask_file = Path(sys.argv[1]), Image.open(sys.argv[2]).convert("RGB"), sys.argv[7]
box = torch.tensor([float(side) for side in sys.argv[3:7]])
programs = [Runtime.get().load_program(folder / f"{part}.pte") for part in ("encoder", "decoder")]
encoder, decoder = (program.load_method("forward") for program in programs)

size, points = (
    encoder.metadata.input_tensor_meta(0).sizes()[-1],
    decoder.metadata.input_tensor_meta(1).sizes()[1],
)
scale = size / max(image.size)
resized = image.resize([int(length * scale + 0.5) for length in image.size], Image.Resampling.BILINEAR)
pixels = (np.asarray(resized, dtype=np.float32) - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
padded = torch.zeros(1, 3, size, size)
padded[0, :, : resized.height, : resized.width] = torch.from_numpy(pixels.transpose(2, 0, 1))

coords, labels = torch.zeros(1, points, 2), torch.full((1, points), -2.0)  # label -2: no point
coords[0, :2], labels[0, :2] = scale * box.reshape(2, 2), torch.tensor([2.0, 3.0])  # a box is two points
(embedding,) = encoder.execute([padded])
no_mask = torch.zeros(decoder.metadata.input_tensor_meta(3).sizes())
ious, logits = decoder.execute([embedding, coords, labels, no_mask, torch.zeros(1)])

square = torch.nn.functional.interpolate(logits[:, :1], (size, size), mode="bilinear")
inside = square[..., : resized.height, : resized.width]
mask = torch.nn.functional.interpolate(inside, (image.height, image.width), mode="bilinear")[0, 0] > 0
Image.fromarray(mask.numpy()).save(mask_file)
print(f"{int(mask.sum())} pixels, predicted IoU {ious[0, 0]:.3f}")
