"""Segment an object from its box with an export of either format and OpenVINO, without saqsam or PyTorch.

python openvino_client.py EXPORT photo.jpg 120 80 460 390 mask.png
"""

import sys
from pathlib import Path

import numpy as np
import openvino
from PIL import Image

folder, image, mask_file = Path(sys.argv[1]), Image.open(sys.argv[2]).convert("RGB"), sys.argv[7]
box = np.array(sys.argv[3:7], dtype=np.float32)
suffix = "xml" if (folder / "encoder.xml").exists() else "onnx"
core = openvino.Core()
encoder, decoder = (core.compile_model(folder / f"{part}.{suffix}", "CPU") for part in ("encoder", "decoder"))

size = encoder.input().shape[-1]
side = decoder.input("mask_input").partial_shape[-1].get_length()
scale = size / max(image.size)
resized = image.resize([int(length * scale + 0.5) for length in image.size], Image.Resampling.BILINEAR)
pixels = (np.asarray(resized, dtype=np.float32) - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
padded = np.zeros((1, 3, size, size), dtype=np.float32)
padded[0, :, : resized.height, : resized.width] = pixels.transpose(2, 0, 1)

outputs = decoder(
    {
        "image_embeddings": encoder(padded)[0],
        "point_coords": scale * box.reshape(1, 2, 2),
        "point_labels": np.array([[2, 3]], dtype=np.float32),  # a box is two points
        "mask_input": np.zeros((1, 1, side, side), dtype=np.float32),
        "has_mask_input": np.zeros(1, dtype=np.float32),
        "orig_im_size": np.array([image.height, image.width], dtype=np.float32),
    }
)
mask = outputs["masks"][0, 0] > 0
Image.fromarray(mask).save(mask_file)
print(f"{mask.sum()} pixels, predicted IoU {outputs['iou_predictions'][0, 0]:.3f}")
