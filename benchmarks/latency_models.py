"""Models that `latency.py` measures, and their files: exports of the float model, and those of saqsam.

    python benchmarks/latency_models.py '{"subject": "sam-b", "part": "encoder", ...}' FOLDER

writes the file of one case: in a process of its own, since some of it takes far more memory than what is timed.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from transformers import Sam2Model, SamModel

import saqsam
from random_models import pack_uncalibrated, random_sam2, random_sam_b, random_sam_b_at
from saqsam.export.manifest import LOW_RES_OUTPUTS
from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.writer import keep_outputs
from saqsam.export.onnx.writers import graph_writer
from saqsam.models.registry import family_of
from saqsam.recipes.deployment import deployable
from saqsam.recipes.recipe import Recipe

SUBJECTS: dict[str, Callable[[], Any]] = {
    "sam-mini": lambda: saqsam.load("sam-mini")[0],
    "sam-b": random_sam_b,
    "sam-b-512": lambda: random_sam_b_at(512),
    "sam-b-768": lambda: random_sam_b_at(768),
    "sam2-tiny": partial(random_sam2, "tiny"),
    "sam2-small": partial(random_sam2, "small"),
    "sam2-base-plus": partial(random_sam2, "base_plus"),
}
RESIZED_SUBJECTS = {512: "sam-b-512", 768: "sam-b-768", 1024: "sam-b"}
"""Subjects of `image_size.py` by input size."""
WHOLE_SUBJECTS = tuple(name for name in SUBJECTS if not name.startswith("sam-b-"))
"""Subjects of `latency.py` by default: every model at its own input size."""
TOOLS = ("nncf", "int4")
"""Variants that `other_tools.py` makes of the default export; `int4` are 4-bit weights beside float activations."""
BUILT_IN = ("default", "dynamic", "static", *TOOLS)
"""Variants made from the default export, whose decoder has a fixed number of prompts."""
OPSET = 17
"""ONNX operator set of the default export."""


@dataclass(frozen=True)
class Case:
    """A measured variant, one row of the results."""

    subject: str
    part: str
    prompts: int
    runtime: str
    variant: str


class DefaultEncoder(torch.nn.Module):
    """The image encoder as `torch.onnx.export` takes it."""

    def __init__(self, model: SamModel) -> None:
        super().__init__()
        self.encoder = model.vision_encoder

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map pixels [1, 3, S, S] to the embedding [1, C, h, w]."""
        embedding: torch.Tensor = self.encoder(pixel_values, return_dict=True).last_hidden_state
        return embedding


class DefaultDecoder(torch.nn.Module):
    """Prompt encoder and mask decoder for box prompts as `torch.onnx.export` takes them."""

    def __init__(self, model: SamModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image_embeddings: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map an embedding [1, C, h, w] and boxes [1, P, 4] to logits [1, P, 3, 4h, 4w] and IoUs [1, P, 3]."""
        sparse, dense = self.model.prompt_encoder(
            input_points=None, input_labels=None, input_boxes=boxes, input_masks=None
        )
        masks, ious = self.model.mask_decoder(
            image_embeddings=image_embeddings,
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return masks, ious


class DefaultEncoder2(torch.nn.Module):
    """The image encoder of SAM 2 as `torch.onnx.export` takes it."""

    def __init__(self, model: Sam2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map pixels [1, 3, S, S] to the embedding [1, C, h, w] and the high-resolution features."""
        finest, fine, embedding = self.model.get_image_embeddings(pixel_values)
        return embedding, finest, fine


class DefaultDecoder2(torch.nn.Module):
    """Prompt encoder and mask decoder of SAM 2 for box prompts as `torch.onnx.export` takes them."""

    def __init__(self, model: Sam2Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, embedding: torch.Tensor, finest: torch.Tensor, fine: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features and boxes [1, P, 4] to logits [1, P, 3, 4h, 4w] and IoUs [1, P, 3]."""
        sparse, dense = self.model.prompt_encoder(
            input_points=None, input_labels=None, input_boxes=boxes, input_masks=None
        )
        masks, ious, *_ = self.model.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=[finest, fine],
        )
        return masks, ious


_DEFAULTS = {
    "sam": {"encoder": DefaultEncoder, "decoder": DefaultDecoder},
    "sam2": {"encoder": DefaultEncoder2, "decoder": DefaultDecoder2},
}
"""Modules that `torch.onnx.export` takes, by family and part."""


def input_names(model: Any, part: str) -> list[str]:
    """Return the inputs of a default export."""
    if part == "encoder":
        return ["pixel_values"]
    return [*family_of(model.config).input_spec(model.config).features, "boxes"]


def inputs(model: Any, part: str, prompts: int) -> dict[str, np.ndarray]:
    """Return random inputs under the names of all variants; a session takes those that it has."""
    generator = np.random.default_rng(0)
    spec = family_of(model.config).input_spec(model.config)
    size, side = spec.image_size, spec.mask_size
    if part == "encoder":
        return {"pixel_values": generator.standard_normal((1, 3, size, size), dtype=np.float32)}
    corners = np.sort(generator.random((prompts, 2, 2), dtype=np.float32) * size, axis=1)
    padding = 1 if spec.pads_boxes else 0
    return {
        **{name: generator.standard_normal(shape, dtype=np.float32) for name, shape in spec.features.items()},
        "boxes": corners.reshape(1, prompts, 4),
        "point_coords": np.pad(corners, ((0, 0), (0, padding), (0, 0))),
        "point_labels": np.tile(np.array([2, 3, *[-1] * padding], dtype=np.float32), (prompts, 1)),
        "mask_input": np.zeros((1, 1, side, side), dtype=np.float32),
        "has_mask_input": np.zeros(1, dtype=np.float32),
    }


def wrapped(model: Any, part: str) -> torch.nn.Module:
    """Return the module of a part that `torch.onnx.export` takes."""
    return _DEFAULTS[family_of(model.config).name][part](model).eval()


def inputs_file(folder: Path, case: Case) -> Path:
    """Return the file with the inputs of a case."""
    return folder / f"{case.part}-{case.prompts}.npz"


def file_of(folder: Path, case: Case) -> Path | None:
    """Return the model file of a case; None for torch."""
    if case.runtime.startswith("torch"):
        return None
    built_in = f"-{case.prompts}" if case.variant in BUILT_IN and case.prompts else ""
    ending = "xml" if case.variant in TOOLS and case.runtime != "onnxruntime" else "onnx"
    return folder / f"{case.part}-{case.variant}{built_in}.{ending}"


def file_bytes(path: Path) -> int:
    """Return the bytes of a model, including OpenVINO's separate weights."""
    return path.stat().st_size + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0)


def recipe_of_variant(variant: str) -> Recipe:
    """Return the recipe of a variant made by saqsam."""
    recipe = deployable(saqsam.recipe_for("mse", variant.removesuffix("-all")))
    return dataclasses.replace(recipe, encoder_products="quantized") if variant.endswith("-all") else recipe


def make_with_tool(case: Case, folder: Path, path: Path, python: str) -> None:
    """Run another tool on the default export, in an interpreter that has the tool."""
    default = file_of(folder, dataclasses.replace(case, runtime="onnxruntime", variant="default"))
    script = Path(__file__).with_name("other_tools.py")
    command = [python, str(script), case.variant, str(default), str(path), str(inputs_file(folder, case))]
    subprocess.run(command, check=True)


def make_file(case: Case, folder: Path, path: Path) -> None:
    """Write the model of a case."""
    unfinished = path.with_suffix(".partial")
    if case.variant == "default":
        export_default(SUBJECTS[case.subject](), case.part, case.prompts, unfinished)
    elif case.variant in ("dynamic", "static"):
        quantize_default(case, folder, unfinished)
    else:
        model = SUBJECTS[case.subject]()
        if case.variant != "float":
            model = pack_uncalibrated(model, recipe_of_variant(case.variant))
        family_of(model.config).simplify(model)
        graph, writer = Graph(case.part), graph_writer(model.config)
        if case.part == "encoder":
            writer.write_encoder(graph, model)
            onnx.save(graph.model({}), unfinished)
        else:
            writer.write_decoder(graph, model, single_mask=False)
            onnx.save(keep_outputs(graph.model({}), set(LOW_RES_OUTPUTS)), unfinished)
    unfinished.rename(path)


def export_default(model: Any, part: str, prompts: int, path: Path) -> None:
    """Export a part of a float model by `torch.onnx.export`."""
    arrays, names = inputs(model, part, prompts), input_names(model, part)
    example = tuple(torch.from_numpy(arrays[name]) for name in names)
    module = wrapped(model, part)
    torch.onnx.export(module, example, str(path), input_names=names, opset_version=OPSET, dynamo=False)
    if part == "encoder":
        fold_constants(path)


def fold_constants(path: Path) -> None:
    """Fold the constants of an ONNX file in place, as ONNX Runtime does at load time.

    Otherwise OpenVINO spends two minutes of each compilation on SAM 2's position embedding, a bicubic resize.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    folded = path.with_suffix(".folded")
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    folded.replace(path)


def quantize_default(case: Case, folder: Path, path: Path) -> None:
    """Quantize the default export by ONNX Runtime's own tools."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    default = file_of(folder, dataclasses.replace(case, variant="default"))
    assert default is not None
    if case.variant == "dynamic":
        quantize_dynamic(default, path)
        return

    class One(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            names = input_names(SUBJECTS[case.subject](), case.part)
            with np.load(inputs_file(folder, case)) as arrays:
                self.left = [{name: arrays[name] for name in names}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    prepared = path.with_suffix(".prepared")
    quant_pre_process(default, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, path, One(), quant_format=QuantFormat.QDQ, per_channel=True)
    prepared.unlink()


def main() -> int:
    """Entry point: a case as JSON, and the folder of its subject."""
    case, folder = Case(**json.loads(sys.argv[1])), Path(sys.argv[2])
    path = file_of(folder, case)
    assert path is not None
    make_file(case, folder, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
