"""Torch modules for tracing compute what torch computes; ExecuTorch's programs hold integers and give torch's masks."""

import copy
import dataclasses
import json
import re
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import SamModel

import saqsam
from saqsam.checkpoint import save_checkpoint
from saqsam.export import export_model, read_manifest
from saqsam.export.executorch.layers import RowConvolution, RowLinear, traced_linear
from saqsam.export.executorch.sam.decoder import EMPTY_LABEL, TracedDecoder
from saqsam.export.executorch.sam.encoder import TracedEncoder
from saqsam.export.manifest import file_hash, manifest_hash
from saqsam.export.packed import ExportError
from saqsam.inference.backend import TorchBackend
from saqsam.inference.predictor import Predictor
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.models.registry import structure_of
from saqsam.recipes.deployment import deployable
from saqsam.recipes.recipe import Recipe
from saqsam.runtimes import load_runtime
from saqsam.runtimes.inputs import decoder_inputs
from saqsam.utils.quiet_logging import quiet_logging
from saqsam.verification.parity import ParityError, TorchReference, compare_with_torch
from saqsam.verification.verify import verify_export
from support.tiny_quantized import quantize_tiny, tiny_data, tiny_recipe
from support.tiny_sam import GRID, tiny_pixels, tiny_processor, tiny_sam

needs_executorch = pytest.mark.skipif(
    find_spec("executorch") is None, reason="executorch is not installed: pip install '.[executorch]'"
)
BOXES = torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0], [1.0, 20.0, 33.0, 63.0]])
POINTS = torch.tensor([[[30.0, 20.0], [5.0, 60.0]], [[0.0, 0.0], [63.0, 63.0]], [[7.0, 8.0], [9.0, 10.0]]])
LABELS = torch.tensor([[1, 0], [0, 1], [1, 1]])
MASKS = torch.randn(3, 4 * GRID, 4 * GRID, generator=torch.Generator().manual_seed(3))
PROMPTS = {
    "boxes": Prompts(boxes=BOXES),
    "points": Prompts(points=POINTS, labels=LABELS),
    "points and boxes": Prompts(points=POINTS, labels=LABELS, boxes=BOXES),
    "boxes and masks": Prompts(boxes=BOXES, mask_inputs=MASKS),
}
EXACT = 1e-5
CHAOS = 0.05
"""A value at the border of two codes falls to either side by its last bits, and later layers see another code. Exact
are the float model, and the layers, each on its own."""


def deployed(method: str = "min-max", bits: str = "w4a8", **changes: Any) -> SamModel:
    return quantize_tiny(dataclasses.replace(deployable(tiny_recipe(method, bits), "executorch"), **changes))


@pytest.fixture(scope="module")
def models() -> dict[str, SamModel]:
    everything = {"upscaling": 8, "hypernetworks": 8, "iou_head": 8, "position_embedding": 7}
    return {
        "float": tiny_sam(),
        "w4a8, input scales, learned": deployed("saq-sam-plus"),
        "w8a8": deployed(bits="w8a8"),
        "w3a8, upscaling too": deployed(bits="w3a8", extra=everything),
    }


NAMES = ("float", "w4a8, input scales, learned", "w8a8", "w3a8, upscaling too")


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def embed(model: SamModel) -> Tensor:
    embedding: Tensor = TorchBackend(model).encode(tiny_pixels()).embedding
    return embedding.detach().contiguous()


def filled_up(prompts: Prompts, embedding: Tensor, points: int) -> dict[str, Tensor]:
    """Inputs of a decoder that takes so many points; one mask, that of the first prompt."""
    given = {
        name: torch.from_numpy(v)
        for name, v in decoder_inputs({"image_embeddings": embedding.numpy()}, prompts).items()
    }
    lacking = points - given["point_labels"].shape[1]
    given["point_coords"] = torch.nn.functional.pad(given["point_coords"], (0, 0, 0, lacking))
    given["point_labels"] = torch.nn.functional.pad(
        given["point_labels"], (0, lacking), value=float(EMPTY_LABEL)
    )
    given["mask_input"] = given["mask_input"][:1]
    return given


@pytest.mark.parametrize("max_block_logits", [None, 16 * GRID**2, 1])
@pytest.mark.parametrize("name", NAMES)
def test_the_traced_encoder_is_torchs(
    models: dict[str, SamModel], name: str, max_block_logits: int | None
) -> None:
    with torch.no_grad():
        found = TracedEncoder(models[name], max_block_logits)(tiny_pixels())
    assert relative(found, embed(models[name])) < (EXACT if name == "float" else CHAOS)


LAYERS = [site.name for site in structure_of(tiny_sam().config).layers]


@pytest.mark.parametrize("which", ["w4a8, input scales, learned", "w8a8"])
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_torchs(models: dict[str, SamModel], which: str, name: str) -> None:
    layer = models[which].get_submodule(name)
    inputs = layer.weight.shape[1]
    rows = 2 * torch.randn(1, GRID * GRID, inputs, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        if len(layer.weight.shape) == 2:
            wanted, found = layer(rows), traced_linear(layer, name)(rows)
        else:
            image = rows.reshape(1, GRID, GRID, inputs).permute(0, 3, 1, 2)
            wanted = layer(image).permute(0, 2, 3, 1).reshape(1, GRID * GRID, -1)
            found = RowConvolution(layer, GRID, name)(rows)
    # Learned scales differ with the processor: now and then a value of a row lies on the border of two codes.
    close = torch.isclose(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5).all(-1)
    assert int((~close).sum()) <= 2
    assert relative(found, wanted) < 1e-2


@pytest.mark.parametrize("points", [5, 9])
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_traced_decoder_is_torchs(
    models: dict[str, SamModel], name: str, prompts: str, points: int
) -> None:
    """However many empty places there are."""
    model, given = models[name], PROMPTS[prompts]
    if given.mask_inputs is not None:  # the module takes one mask for all prompts
        given = dataclasses.replace(given, mask_inputs=MASKS[:1].expand(3, -1, -1))
    embedding = embed(model)
    with torch.no_grad():
        ious, low_res = TracedDecoder(model)(**filled_up(given, embedding, points))
        for multimask, part in ((False, slice(0, 1)), (True, slice(1, None))):
            logits, scores = TorchBackend(model).decode(Features(embedding), given, multimask)
            tolerance = EXACT if name == "float" else CHAOS
            assert relative(low_res[:, part], logits) < tolerance
            assert relative(ious[:, part], scores) < tolerance


@pytest.mark.parametrize(("points", "only_first"), [(1, False), (2, True)])
def test_a_single_mask_is_chosen_as_by_the_official_export(
    models: dict[str, SamModel], points: int, only_first: bool
) -> None:
    model = models["float"]
    inputs = filled_up(Prompts(points=POINTS[:, :points], labels=LABELS[:, :points]), embed(model), 8)
    with torch.no_grad():
        ious, low_res = TracedDecoder(model)(**inputs)
        best, chosen = TracedDecoder(model, single_mask=True)(**inputs)
    assert chosen.shape == (3, 1, 4 * GRID, 4 * GRID)
    index = [0] * 3 if only_first else (1 + ious[:, 1:].argmax(1)).tolist()
    for prompt, mask in enumerate(index):
        assert torch.equal(chosen[prompt, 0], low_res[prompt, mask])
        assert best[prompt, 0] == ious[prompt, mask]


def test_a_mask_that_is_not_meant_may_hold_anything(models: dict[str, SamModel]) -> None:
    inputs = filled_up(PROMPTS["boxes"], embed(models["w8a8"]), 4)
    module = TracedDecoder(models["w8a8"])
    with torch.no_grad():
        _, clean = module(**inputs)
        _, found = module(**{**inputs, "mask_input": torch.full_like(inputs["mask_input"], torch.nan)})
    assert torch.equal(found, clean)


def test_each_quantized_layer_is_one_product_of_its_width(models: dict[str, SamModel]) -> None:
    model = models["w3a8, upscaling too"]
    modules = [*TracedEncoder(model).modules(), *TracedDecoder(model).modules()]
    found = Counter(m.packed.bits for m in modules if isinstance(m, RowLinear) and m.is_quantized)
    structure = structure_of(model.config)
    layers = [model.get_submodule(site.name) for site in structure.weighted_sites]
    wanted = Counter(4 if layer.weight.bits <= 4 else 8 for layer in layers if hasattr(layer.weight, "bits"))
    assert found == wanted
    assert min(found.values()) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activations": tiny_recipe(bits="w8a8").activations}, r"attn\.qkv.*activations\.dynamic=true"),
        ({"encoder_products": "quantized"}, r"vision_encoder\.layers\.0\.attn.*encoder_products=float"),
        ({"decoder_products": "quantized"}, r"layers\.0\.self_attn.*decoder_products=float"),
        ({"extra": {"iou_head": 4}}, r"iou_prediction_head\.proj_in.*8 bits, got 4"),
        ({"weights": tiny_recipe(bits="w8a8").weights}, r"attn\.qkv.*weights\.symmetric=true"),
    ],
)
def test_what_kernels_cannot_run_is_refused_with_the_field_to_change(changes: Any, words: str) -> None:
    model = deployed(bits="w8a8", **changes)
    with pytest.raises(ExportError, match=words):
        (TracedEncoder(model), TracedDecoder(model))


def test_a_missing_package_is_named_with_what_to_install(
    models: dict[str, SamModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs the package executorch: pip install 'saqsam\[executorch\]'"):
        export_model(models["w8a8"], tiny_processor(), tmp_path / "out", format="executorch")
    assert not list(tmp_path.iterdir())


Exported = tuple[SamModel, Path]


@pytest.fixture(scope="module")
def exported(models: dict[str, SamModel], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A checkpoint as reloaded, and its export, to be changed by no test."""
    folder = tmp_path_factory.mktemp("executorch")
    save_checkpoint(models["w4a8, input scales, learned"], tiny_processor(), folder / "checkpoint")
    model, processor = saqsam.load(folder / "checkpoint")
    export_model(model, processor, folder / "export", format="executorch")
    return model, folder / "export"


@needs_executorch
def test_the_runtime_gives_torchs_masks(exported: Exported) -> None:
    model, folder = exported
    backend, processor = load_runtime(folder, threads=1)
    parity = compare_with_torch(backend, processor, TorchReference(model, processor, tiny_data(3)))
    assert all(tensor.relative < CHAOS for tensor in parity.tensors)
    assert parity.mask_iou > 0.95
    assert parity.masks > 3


@needs_executorch
@pytest.mark.parametrize("prompts", PROMPTS)
def test_the_runtime_takes_all_prompts(exported: Exported, prompts: str) -> None:
    """Of one shared mask and of one mask for each prompt."""
    model, folder = exported
    backend, _ = load_runtime(folder)
    embedding = embed(model)
    for multimask in (False, True):
        with torch.no_grad():
            wanted = TorchBackend(model).decode(Features(embedding), PROMPTS[prompts], multimask)
        found = backend.decode(Features(embedding), PROMPTS[prompts], multimask)
        for one, other in zip(found, wanted, strict=True):
            assert one.shape == other.shape
            assert relative(one, other) < CHAOS


@needs_executorch
def test_more_prompts_than_a_call_takes_are_computed_in_several(exported: Exported) -> None:
    model, folder = exported
    backend, _ = load_runtime(folder)
    many = BOXES.repeat(12, 1)[:35]
    logits, ious = backend.decode(Features(embed(model)), Prompts(boxes=many), False)
    assert logits.shape == (35, 1, 4 * GRID, 4 * GRID)
    one, _ = backend.decode(Features(embed(model)), Prompts(boxes=many[34:]), False)
    torch.testing.assert_close(logits[34:], one, atol=1e-4, rtol=1e-4)
    assert len(ious) == 35


@needs_executorch
def test_an_embedding_of_another_memory_layout_is_the_same(exported: Exported) -> None:
    model, folder = exported
    backend, _ = load_runtime(folder)
    embedding = embed(model)
    wanted, _ = backend.decode(Features(embedding), PROMPTS["boxes"], False)
    found, _ = backend.decode(
        Features(embedding.contiguous(memory_format=torch.channels_last)), PROMPTS["boxes"], False
    )
    assert torch.equal(found, wanted)


@needs_executorch
def test_the_predictor_runs_and_pixels_of_another_size_are_refused(exported: Exported) -> None:
    predictor = Predictor(*load_runtime(exported[1], "executorch", threads=1))
    image = tiny_data()[0].image
    predictor.set_image(image)
    masks, _, _ = predictor.predict(box=np.array([5, 6, 50, 40]), multimask_output=False)
    assert masks.shape == (1, *image.shape[:2])
    backend, _ = load_runtime(exported[1])
    with pytest.raises(ValueError, match=r"takes \(1, 3, 64, 64\), got \(1, 3, 32, 64\)"):
        backend.encode(torch.zeros(1, 3, 32, 64))


@needs_executorch
def test_prompts_that_the_decoder_does_not_take_are_refused(exported: Exported) -> None:
    model, folder = exported
    backend, _ = load_runtime(folder)
    points = Prompts(points=torch.zeros(1, 16, 2), labels=torch.ones(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"takes 16 points a prompt.*got 17"):
        backend.decode(Features(embed(model)), points, False)
    with pytest.raises(ValueError, match="at least one, got none"):
        backend.decode(Features(embed(model)), Prompts(boxes=torch.zeros(0, 4)), False)


@needs_executorch
def test_the_manifest_tells_who_runs_what(exported: Exported) -> None:
    found = read_manifest(exported[1])
    assert found.format == "executorch"
    assert set(found.files) == {"encoder.pte", "decoder.pte"}
    assert found.name == "saq-sam-plus-executorch-w4a8-mixed"
    assert Recipe.from_dict(found.recipe).activations.dynamic
    delegation = found.details["delegation"]
    assert delegation["encoder"]["integer_products"] == {"qd8-f32-qc4w": 4 * 4 + 2}
    heads, upscaling = 4 * 3 + 3, 1
    expected = {"qd8-f32-qc4w": 7 * 4 + 2 * 2, "qd8-f32-qc8w": heads + upscaling}
    assert delegation["decoder"]["integer_products"] == expected
    assert delegation["encoder"]["float_products"].keys() == {"bmm"}
    for part in delegation.values():
        assert part["delegated"] / (part["delegated"] + sum(part["outside"].values())) == part["share"] > 0.8
        assert not {"linear", "bmm", "convolution"} & part["outside"].keys()
    assert found.details["points"] == 16
    assert any("label -2" in line for line in found.details["substitutions"])


@needs_executorch
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_programs_hold_the_integer_kernels_that_the_manifest_tells_of(
    exported: Exported, part: str
) -> None:
    """Counted in what XNNPACK itself reads of the file, by the types of what goes into its products."""
    names = {
        ("qdint8", "qcint4", "fp32"): "qd8-f32-qc4w",
        ("qdint8", "qcint8", "fp32"): "qd8-f32-qc8w",
        ("fp32", "fp32", "fp32"): "linear",
    }
    told = read_manifest(exported[1]).details["delegation"][part]
    wanted = {**told["integer_products"], "linear": told["float_products"].get("linear", 0)}
    found = Counter(names[kinds] for kinds in fully_connected(exported[1] / f"{part}.pte"))
    assert found == Counter(wanted)


def fully_connected(path: Path) -> list[tuple[str, str, str]]:
    """Types of input, weight and output of each fully connected node that XNNPACK finds in a program."""
    with quiet_logging():
        from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as xnnpack
        from executorch.exir._serialize import _flatbuffer, _program
    program = _program.deserialize_pte_binary(path.read_bytes()).program
    found = []
    for delegate in program.execution_plan[0].delegates:
        data = program.backend_delegate_data[delegate.processed.index].data
        header = xnnpack.XNNHeader.from_bytes(data[: xnnpack.XNNHeader.EXPECTED_LENGTH])
        graph = data[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size]
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "graph.bin").write_bytes(graph)
            (Path(name) / "schema.fbs").write_bytes(xnnpack._get_schema_bytes())
            files = [str(Path(name) / file) for file in ("schema.fbs", "graph.bin")]
            _flatbuffer._flatc_decompile(name, *files, ["--raw-binary"])
            text = (Path(name) / "graph.json").read_text()
            read = json.loads(
                re.sub(r"([:\[ ][-+]?)inf\b", r"\1Infinity", text).replace("+Infinity", "Infinity")
            )
        tensors = [value["xvalue_union"] for value in read["xvalues"]]
        tensors = [tensor.get("tensor_value", tensor) for tensor in tensors]
        kinds = {tensor["id_out"]: tensor["datatype"].removeprefix("xnn_datatype_") for tensor in tensors}
        for node in read["xnodes"]:
            if node["xnode_union_type"] == "XNNFullyConnected":
                union = node["xnode_union"]
                found.append(tuple(kinds[union[name]] for name in ("input1_id", "filter_id", "output_id")))
    return found


@needs_executorch
def test_a_program_cut_short_is_named(exported: Exported, tmp_path: Path) -> None:
    for file in exported[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = (tmp_path / "decoder.pte").read_bytes()
    (tmp_path / "decoder.pte").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"decoder\.pte.*cut short"):
        load_runtime(tmp_path)
    # One whose hash was forged too.
    manifest = json.loads((tmp_path / "export.json").read_text())
    manifest["files"]["decoder.pte"] = file_hash(tmp_path / "decoder.pte")
    manifest["sha256"] = manifest_hash(manifest)
    (tmp_path / "export.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"decoder\.pte: ExecuTorch cannot load it"):
        load_runtime(tmp_path)


@needs_executorch
def test_a_program_that_differs_is_told_by_its_part(exported: Exported) -> None:
    model, folder = exported
    for parity in verify_export(folder, model, tiny_processor(), tiny_data(2)).values():
        assert parity.decided_iou > 0.95
    changed = copy.deepcopy(model)
    changed.vision_encoder.neck.conv2.weight.codes.fill_(255)
    with pytest.raises(ParityError, match=r"executorch: expected .*; the encoder differs first"):
        verify_export(folder, changed, tiny_processor(), tiny_data(2), min_parity=1.0)


@needs_executorch
def test_threads_share_a_program(exported: Exported) -> None:
    backend, _ = load_runtime(exported[1], threads=1)

    def work(seed: int) -> tuple[Tensor, ...]:
        features = backend.encode(tiny_pixels(seed=seed))
        return features.embedding, *backend.decode(features, Prompts(boxes=BOXES[: 1 + seed % 3]), False)

    alone = [work(seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(12)))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@needs_executorch
def test_other_runtimes_refuse_the_folder(exported: Exported) -> None:
    with pytest.raises(ValueError, match="onnxruntime does not run exports of the format executorch"):
        load_runtime(exported[1], "onnxruntime")


@needs_executorch
def test_a_checkpoint_for_other_runtimes_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = quantize_tiny(deployable(tiny_recipe(bits="w8a8")))
    save_checkpoint(model, tiny_processor(), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="--deploy-for executorch"):
        export_model(model, tiny_processor(), tmp_path / "out", format="executorch")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_row_of_zeros_or_of_one_sign_keeps_its_zero(models: dict[str, SamModel]) -> None:
    layer = models["w8a8"].mask_decoder.transformer.layers[0].mlp.lin1
    rows = torch.zeros(3, layer.in_features)
    rows[1], rows[2, 0] = 1.5, -3.0
    with torch.no_grad():
        found, wanted = traced_linear(layer, "lin1")(rows), layer(rows)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found[0], layer.bias)
