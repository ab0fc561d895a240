"""Compute the golden hashes of a tiny SAM; record them with `python -m golden.hashes` from the tests folder.

Learned scales differ in their last bits between processors and versions of torch, so the record also holds the
hash of a float computation that saqsam has no part in: where that differs, the golden hashes say nothing.
"""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor

from saqsam import deployable, evaluate, export_model, load, quantize, recipe_for, save_checkpoint
from saqsam.data.scenes.dataset import ScenesDataset
from saqsam.recipes.recipe import Calibration, Recipe
from support.tiny_sam import tiny_pixels, tiny_processor, tiny_sam

RECORDED = Path(__file__).with_name("hashes.json")
METHODS = ("mse", "ptq4sam-s", "saq-sam", "saq-sam-plus")
SIZE = (48, 64)


def arithmetic_hash() -> str:
    """Return the hash of outputs and gradients of transformers' own float model on this machine."""
    model = tiny_sam()
    boxes = torch.tensor([[[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]]])
    with one_thread():
        found = model(pixel_values=tiny_pixels(), input_boxes=boxes)
        (found.pred_masks.square().mean() + found.iou_scores.sum()).backward()
    tensors = {"masks": found.pred_masks.detach(), "ious": found.iou_scores.detach()}
    tensors |= {f"gradient.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return hash_tensors(tensors)


def golden_hashes() -> dict[str, str]:
    """Quantize, save, load, export and evaluate; return a hash by what it is of."""
    hashes = {}
    with one_thread(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for method in METHODS:
            for bits, deploy in (("w4a4", False), ("w4a8", True)):
                title = f"{method} {bits}{' deployed' if deploy else ''}"
                recipe = small_recipe(method, bits)
                recipe = deployable(recipe) if deploy else recipe
                model = quantize(tiny_sam(), tiny_processor(), recipe, scenes(4)).model
                saved = save_checkpoint(model, tiny_processor(), folder / title)
                hashes[f"{title}: checkpoint"] = hash_tensors(model.state_dict())
                if deploy:
                    export_model(model, tiny_processor(), folder / f"{title} onnx")
                    for part in ("encoder", "decoder"):
                        graph = folder / f"{title} onnx" / f"{part}.onnx"
                        hashes[f"{title}: {part}.onnx"] = hash_graph(graph)
        loaded, processor = load(saved)
        scores = evaluate(loaded, processor, scenes(3)).to_json()
        hashes["evaluation"] = hashlib.sha256(scores.encode()).hexdigest()
    return hashes


def small_recipe(method: str, bits: str) -> Recipe:
    recipe = recipe_for(method, bits, "quick")
    recipe = dataclasses.replace(recipe, calibration=Calibration(images=4, prompts=8))
    if recipe.reconstruction is None:
        return recipe
    few = dataclasses.replace(recipe.reconstruction, steps=6, final_steps=2, prompts=2)
    return dataclasses.replace(recipe, reconstruction=few)


def scenes(count: int) -> ScenesDataset:
    return ScenesDataset(count=count, seed=7, size=SIZE)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_graph(path: Path) -> str:
    """Return the hash of an ONNX file without its metadata, which repeats the recipe and names versions."""
    model = onnx.load(path)
    del model.metadata_props[:]
    model.producer_version = ""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    record = {
        "torch": torch.__version__,
        "arithmetic": arithmetic_hash(),
        "hashes": golden_hashes(),
    }
    RECORDED.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
