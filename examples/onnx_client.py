"""Segment an object from its box with an export and ONNX Runtime, without saqsam or PyTorch.

python onnx_client.py EXPORT photo.jpg 120 80 460 390 mask.png
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder, image, mask_file = Path(sys.argv[1]), Image.open(sys.argv[2]).convert("RGB"), sys.argv[7]
box = np.array(sys.argv[3:7], dtype=np.float32)
options = onnxruntime.SessionOptions()
# Keeps products exact on x86 processors without 8-bit dot products.
options.add_session_config_entry("session.x64quantprecision", "1")
files = (folder / f"{part}.onnx" for part in ("encoder", "decoder"))
encoder, decoder = (onnxruntime.InferenceSession(file, options) for file in files)

size, side = encoder.get_inputs()[0].shape[-1], decoder.get_inputs()[3].shape[-1]
scale = size / max(image.size)
resized = image.resize([int(length * scale + 0.5) for length in image.size], Image.Resampling.BILINEAR)
pixels = (np.asarray(resized, dtype=np.float32) - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
padded = np.zeros((1, 3, size, size), dtype=np.float32)
padded[0, :, : resized.height, : resized.width] = pixels.transpose(2, 0, 1)

inputs = {
    "image_embeddings": encoder.run(None, {"pixel_values": padded})[0],
    "point_coords": scale * box.reshape(1, 2, 2),
    "point_labels": np.array([[2, 3]], dtype=np.float32),  # a box is two points
    "mask_input": np.zeros((1, 1, side, side), dtype=np.float32),
    "has_mask_input": np.zeros(1, dtype=np.float32),
    "orig_im_size": np.array([image.height, image.width], dtype=np.float32),
}
masks, ious, _ = decoder.run(None, inputs)
Image.fromarray(masks[0, 0] > 0).save(mask_file)
print(f"{(masks[0, 0] > 0).sum()} pixels, predicted IoU {ious[0, 0]:.3f}")
