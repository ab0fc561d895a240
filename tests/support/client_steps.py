"""Exports in layouts of other clients, and saqsam's own single-mask export of the same model to compare them with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from saqsam.export import export_model
from saqsam.inference.processing import preprocess

Arrays = Mapping[str, np.ndarray]


def run(path: Path, feeds: Arrays) -> dict[str, np.ndarray]:
    """Run an ONNX file on inputs by name; return all outputs by name."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip((value.name for value in session.get_outputs()), session.run(None, feeds), strict=True))


@dataclass(frozen=True)
class Exports:
    """A model in the layout of a client and in saqsam's own.

    Attributes:
        folder: Folder in the client's layout.
        encoder: Encoder in it.
        decoder: Decoder in it.
        own: Folder in saqsam's layout, whose decoder is the official one.
        processor: Processor of the model.
    """

    folder: Path
    encoder: Path
    decoder: Path
    own: Path
    processor: Any

    def own_features(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return the feature maps of an HWC uint8 image by name."""
        pixels, _ = preprocess(self.processor, image)
        return run(self.own / "encoder.onnx", {"pixel_values": pixels.numpy()})

    def own_embedding(self, image: np.ndarray) -> np.ndarray:
        """Return the embedding of an HWC uint8 image."""
        return self.own_features(image)["image_embeddings"]

    def own_masks(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs of the official decoder."""
        return run(self.own / "decoder.onnx", feeds)


def write_exports(
    model: Any, processor: Any, root: Path, layout: str, *, single_mask: bool = True
) -> Exports:
    """Export a model in both layouts."""
    written = export_model(model, processor, root / layout, layout=layout)
    export_model(model, processor, root / "own", single_mask=single_mask)
    encoder, decoder = (root / layout / name for name in written.files)
    return Exports(root / layout, encoder, decoder, root / "own", processor)


def official_feeds(
    embedding: np.ndarray, points: Any, labels: Any, size: tuple[int, int], target: int
) -> dict[str, np.ndarray]:
    """Return the inputs of the official decoder for one prompt, by the steps of the official notebook.

    Args:
        embedding: Embedding of the image.
        points: Points [N, 2] as x, y in pixels of the image, corners of a box among them.
        labels: Labels [N].
        size: Height and width of the image.
        target: Side of the model's input.
    """
    scale = target / max(size)
    resized = [int(side * scale + 0.5) / side for side in (size[1], size[0])]
    coords = np.concatenate([np.asarray(points, np.float64) * resized, np.zeros((1, 2))])
    mask = 4 * embedding.shape[-1]
    return {
        "image_embeddings": embedding,
        "point_coords": coords[None].astype(np.float32),
        "point_labels": np.append(labels, -1)[None].astype(np.float32),
        "mask_input": np.zeros((1, 1, mask, mask), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(size, np.float32),
    }


def stretched_feeds(
    features: Arrays, points: Any, labels: Any, size: tuple[int, int], target: int
) -> dict[str, np.ndarray]:
    """Return the inputs of saqsam's own SAM 2 decoder for one prompt, with the padding point.

    Args:
        features: Feature maps of the image.
        points: Points [N, 2] as x, y in pixels of the image, corners of a box among them.
        labels: Labels [N].
        size: Height and width of the image.
        target: Side of the model's input.
    """
    scaled = np.asarray(points, np.float64) * [target / size[1], target / size[0]]
    mask = 4 * features["image_embeddings"].shape[-1]
    return {
        **features,
        "point_coords": np.concatenate([scaled, np.zeros((1, 2))])[None].astype(np.float32),
        "point_labels": np.append(labels, -1)[None].astype(np.float32),
        "mask_input": np.zeros((1, 1, mask, mask), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array(size, np.float32),
    }


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return a smooth HWC uint8 image with some structure."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3))
    rows, columns = (np.arange(side) * 6 // side for side in size)
    return coarse[rows][:, columns].astype(np.uint8)
