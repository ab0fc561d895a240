"""Our decoder in the place of the official ONNX export: the same inputs, by the official notebook's steps."""

import numpy as np
import onnxruntime
import pytest
import torch

from saqsam.export.onnx.graph import Graph
from saqsam.export.onnx.sam.decoder import write_decoder
from support.small_official import GRID, IMAGE, WIDTH, convert, small_official
from support.torchvision_stub import import_segment_anything

import_segment_anything()
from segment_anything.modeling import Sam  # noqa: E402
from segment_anything.utils.onnx import SamOnnxModel  # noqa: E402
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402

SIZE = (75, 120)  # height and width of the picture


@pytest.fixture(scope="module")
def official() -> Sam:
    return small_official()


def session(official: Sam, *, single_mask: bool) -> onnxruntime.InferenceSession:
    graph = Graph("decoder")
    write_decoder(graph, convert(official), single_mask=single_mask)
    return onnxruntime.InferenceSession(
        graph.model({}).SerializeToString(), providers=["CPUExecutionProvider"]
    )


def prompt(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Points [1, N, 2] in pixels of the picture and labels [1, N], as the official notebook joins them."""
    point, label = np.array([[50, 37]]), np.array([1])
    corners, corner_labels = np.array([[10, 12], [80, 60]]), np.array([2, 3])
    padding, padding_label = np.array([[0.0, 0.0]]), np.array([-1])
    parts = {
        "point": ((point, label), (padding, padding_label)),
        "box": ((corners, corner_labels),),
        "box and point": ((corners, corner_labels), (point, 0 * label)),
        "points": ((point, label), (point + 5, 0 * label), (point - 9, label), (padding, padding_label)),
    }[kind]
    coords = np.concatenate([part[0] for part in parts]).astype(np.float64)
    labels = np.concatenate([part[1] for part in parts])
    resized = ResizeLongestSide(IMAGE).apply_coords(coords, SIZE)
    return resized[None].astype(np.float32), labels[None].astype(np.float32)


@pytest.mark.parametrize("single_mask", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("kind", ["point", "box", "box and point", "points"])
@pytest.mark.filterwarnings("ignore")
def test_official_clients_get_the_official_masks(
    official: Sam, kind: str, with_mask: bool, single_mask: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    coords, labels = prompt(kind)
    mask = torch.randn(1, 1, 4 * GRID, 4 * GRID, generator=generator).numpy()
    inputs = {
        "image_embeddings": torch.randn(1, WIDTH, GRID, GRID, generator=generator).numpy(),
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": mask if with_mask else np.zeros_like(mask),
        "has_mask_input": np.array([with_mask], dtype=np.float32),
        "orig_im_size": np.array(SIZE, dtype=np.float32),
    }
    found = session(official, single_mask=single_mask).run(None, inputs)
    reference = SamOnnxModel(official, return_single_mask=single_mask)
    wanted = reference(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    assert found[0].shape == (1, 1 if single_mask else 4, *SIZE)
    for one, other in zip(found, wanted, strict=True):
        scale = float(other.abs().max())
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5 * max(scale, 0.1))
