"""transformers' Auto classes and pipeline find packed checkpoints after `import saqsam`, each in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import sys
import numpy as np
import torch
from PIL import Image

import saqsam
from support.tiny_quantized import assert_same_outputs, tiny_data
from support.torchvision_stub import torchvision_stub

folder = sys.argv[1]
image = tiny_data()[0].image
"""
SCRIPTS = {
    "AutoModel": """
from transformers import AutoModel
model = AutoModel.from_pretrained(folder)
""",
    "AutoModelForMaskGeneration": """
from transformers import AutoModelForMaskGeneration
model = AutoModelForMaskGeneration.from_pretrained(folder)
""",
    "AutoProcessor": """
from transformers import AutoModelForMaskGeneration, AutoProcessor
model = AutoModelForMaskGeneration.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
found, expected = (
    one(images=image, input_boxes=[[[4, 4, 40, 30]]], return_tensors="pt")
    for one in (processor, saqsam.load(folder)[1])
)
assert found.keys() == expected.keys()
for name in expected:
    assert torch.equal(found[name], expected[name]), name
with torch.inference_mode():
    output = model(**{name: found[name] for name in ("pixel_values", "input_boxes")})
masks = processor.post_process_masks(output.pred_masks, found["original_sizes"], found["reshaped_input_sizes"])
assert masks[0].shape[-2:] == image.shape[:2]
""",
    "pipeline": """
from transformers import pipeline
from transformers.utils import import_utils
with torchvision_stub():
    # transformers asks once and for all whether torchvision is installed.
    message = import_utils.BACKENDS_MAPPING["torchvision"][1]
    generator = pipeline("mask-generation", model=folder)
    import_utils.BACKENDS_MAPPING["torchvision"] = (lambda: True, message)
    thresholds = {"pred_iou_thresh": -100.0, "stability_score_thresh": 0.0, "mask_threshold": 0.0}
    masks = generator(Image.fromarray(image), points_per_crop=4, **thresholds)["masks"]
assert len(masks) > 0
model = generator.model
""",
}
END = """
assert model.is_quantized
assert_same_outputs(model, saqsam.load(folder)[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_packed_folder_is_found(packed: Path, name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", START + SCRIPTS[name] + END, str(packed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
