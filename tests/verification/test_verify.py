"""An export is judged by the masks of its runtimes, and a failure names the first node that differs."""

import copy
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SamModel

import saqsam
from saqsam.checkpoint import save_checkpoint
from saqsam.cli.commands.export import PARITY_IMAGES, parity_images
from saqsam.export import export_model
from saqsam.export.onnx.layers import layer_input, linear, rearrange
from saqsam.export.onnx.sam import encoder
from saqsam.export.onnx.sam.two_way_transformer import TwoWayTransformer
from saqsam.export.openvino_core import saturates_integers
from saqsam.inference.backend import Backend, TorchBackend
from saqsam.inference.prompts import Prompts
from saqsam.models.family import Features
from saqsam.quant.layers import PackedLinear
from saqsam.quant.packing import pack_codes
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import load_runtime
from saqsam.runtimes.onnxruntime import OnnxRuntimeBackend
from saqsam.verification.divergence import find_divergence
from saqsam.verification.parity import Parity, ParityError, TorchReference, compare_with_torch
from saqsam.verification.verify import parity_content, runtimes_to_judge, verify_export
from support.command_line import assert_done, assert_refused, run
from support.tiny_quantized import quantize_tiny, tiny_data, tiny_recipe
from support.tiny_sam import tiny_pixels, tiny_processor

BOXES = Prompts(boxes=torch.tensor([[4.0, 4.0, 40.0, 50.0], [10.0, 0.0, 60.0, 30.0]]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed") / "checkpoint"
    return save_checkpoint(quantize_tiny(deployable(tiny_recipe(bits="w8a8"))), tiny_processor(), folder)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> SamModel:
    """The deployed model, to be changed by no test."""
    return saqsam.load(checkpoint)[0]


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def exported(
    request: pytest.FixtureRequest, model: SamModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("exports") / request.param
    export_model(model, tiny_processor(), folder, format=request.param)
    return folder


def altered(model: SamModel, name: str) -> SamModel:
    """The model with one layer's weights negated."""
    changed = copy.deepcopy(model)
    packed: Any = changed.get_submodule(name).weight
    codes = 256 - packed.unpack().short()  # around the middle code of 8 bits
    packed.codes.copy_(pack_codes(codes.clamp(max=255).to(torch.uint8), packed.bits))
    return changed


def test_a_sound_export_passes_in_all_its_runtimes(exported: Path, model: SamModel) -> None:
    found = verify_export(exported, model, tiny_processor(), tiny_data(3))
    own = "onnxruntime" if exported.name == "onnx" else "openvino"
    assert [*found] == ([own, "openvino"] if exported.name == "onnx" else [own])
    for parity in found.values():
        assert parity.decided_iou >= parity.mask_iou > 0.95
        assert parity.decided_iou > 0.98
        assert parity.masks > 3
    content = parity_content(found, 0.95)
    assert content["mask_iou"] == found[own].mask_iou
    assert content["runtime"] == own
    assert content["other_runtimes"].keys() == found.keys() - {own}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exported", "layer", "part", "node"),
    [
        ("onnx", "vision_encoder.layers.1.mlp.lin1", "encoder", r"/layers\.1/mlp/Gemm"),
        ("openvino", "vision_encoder.layers.2.attn.proj", "encoder", r"/layers\.2/attn/Gemm"),
        (
            "openvino",
            "mask_decoder.transformer.layers.1.cross_attn_image_to_token.v_proj",
            "decoder",
            r"/mask_decoder/layers\.1/cross_attn_image_to_token/v_proj/Gemm",
        ),
    ],
    indirect=["exported"],
)
def test_the_layer_that_differs_is_named(
    exported: Path, model: SamModel, layer: str, part: str, node: str
) -> None:
    words = rf"expected masks with a mean IoU of .*got 0\.\d+; node {node} of the {part} differs first"
    with pytest.raises(ParityError, match=words):
        verify_export(exported, altered(model, layer), tiny_processor(), tiny_data(1), min_parity=0.999)


def old_linear(self: Any, layer: Any, value: str, where: str) -> str:
    """A layer whose Reshape states all sizes.

    OpenVINO's transformations to low precision get it wrong after a layer without biases.
    """
    graph = self.graph
    given = layer_input(graph, layer, value, where)
    rows = rearrange(graph, given, "Reshape", graph.ints(-1, layer.in_features))
    sizes = graph.op("Slice", graph.op("Shape", value), graph.ints(0), graph.ints(2))
    found = linear(graph, layer, rows, where)
    return graph.op("Reshape", found, graph.op("Concat", sizes, graph.ints(layer.out_features), axis=0))


def without_biases(model: SamModel) -> SamModel:
    changed = copy.deepcopy(model)
    for layer in changed.mask_decoder.modules():
        if isinstance(layer, PackedLinear):
            layer.bias = torch.nn.Parameter(torch.zeros_like(layer.bias), requires_grad=False)
    return changed


@pytest.mark.slow
@pytest.mark.skipif(
    saturates_integers(), reason="OpenVINO's transformations to low precision are off on this processor"
)
def test_a_fault_of_a_runtimes_own_optimizations_is_found(
    model: SamModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoWayTransformer, "_linear", old_linear)
    changed = without_biases(model)
    export_model(changed, tiny_processor(), tmp_path / "export")
    with pytest.raises(
        ParityError,
        match=r"openvino: expected .*; node /mask_decoder/layers\.0/cross_attn_token_to_image/",
    ):
        verify_export(tmp_path / "export", changed, tiny_processor(), tiny_data(2))
    found = verify_export(
        tmp_path / "export", changed, tiny_processor(), tiny_data(2), runtimes=["onnxruntime"]
    )
    assert found["onnxruntime"].decided_iou > 0.95


def test_a_fault_of_the_graph_itself_is_found_in_its_block(
    exported: Path, model: SamModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "activation", lambda graph, _module, value: graph.op("Tanh", value))
    format = exported.name
    export_model(model, tiny_processor(), tmp_path / "export", format=format)
    backend, _ = load_runtime(tmp_path / "export")
    runtime = "onnxruntime" if format == "onnx" else format
    found = find_divergence(
        tmp_path / "export", backend, backend.manifest, runtime, model, tiny_pixels(), BOXES
    )
    assert (found.part, found.node) == ("encoder", "layers.0")
    assert found.relative > 0.05


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[None]]:
    """Yield a list that grows by one entry for each call of a module."""
    calls: list[None] = []
    handle = module.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


class Wrong:
    """A runtime that changes the logits of another."""

    def __init__(self, inner: Backend, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.inner, self.change = inner, change
        self.encode = inner.encode

    def decode(
        self, features: Features, prompts: Prompts, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, ious = self.inner.decode(features, prompts, multimask_output)
        return self.change(logits), ious


def tripled(logits: torch.Tensor) -> torch.Tensor:
    return 3 * logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_no_parity(model: SamModel, value: float) -> None:
    backend = Wrong(TorchBackend(model), lambda logits: torch.full_like(logits, value))
    with pytest.raises(ParityError, match="low_res_masks: expected finite values, got NaN or infinity"):
        compare_with_torch(backend, tiny_processor(), TorchReference(model, tiny_processor(), tiny_data(1)))


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_nan_fails_an_export_whatever_parity_is_asked_for(
    exported: Path, model: SamModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        OnnxRuntimeBackend, "encode", lambda self, pixels: Features(torch.full((1, 32, 8, 8), float("nan")))
    )
    with pytest.raises(
        ParityError, match=r"onnxruntime: image_embeddings: expected finite.*the encoder differs"
    ):
        verify_export(exported, model, tiny_processor(), tiny_data(1), min_parity=0)


def test_pixels_that_rounding_flips_do_not_count(model: SamModel) -> None:
    def judged(change: Callable[[torch.Tensor], torch.Tensor]) -> Parity:
        reference = TorchReference(model, tiny_processor(), tiny_data(2))
        return compare_with_torch(Wrong(TorchBackend(model), change), tiny_processor(), reference)

    def nudge(logits: torch.Tensor) -> torch.Tensor:
        return logits - 0.03 * logits.square().mean((-1, -2), keepdim=True).sqrt()

    nudged = judged(nudge)
    assert nudged.mask_iou < nudged.decided_iou == 1
    assert judged(lambda logits: -logits).decided_iou < 0.3


def test_masks_that_are_both_empty_agree(model: SamModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(TorchBackend):
        def decode(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
            logits, ious = super().decode(*arguments)
            return -logits.abs() - 1, ious

    monkeypatch.setattr("saqsam.verification.parity.TorchBackend", Empty)
    reference = TorchReference(model, tiny_processor(), tiny_data(1))
    found = compare_with_torch(Empty(model), tiny_processor(), reference)
    assert found.mask_iou == found.decided_iou == 1


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_full_masks_are_judged_by_their_logits(
    exported: Path, model: SamModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks that fill the picture are alike whatever the logits are."""

    class Full(TorchBackend):
        def decode(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
            logits, ious = super().decode(*arguments)
            return logits.abs() + 1, ious

    monkeypatch.setattr("saqsam.verification.parity.TorchBackend", Full)
    monkeypatch.setattr(
        "saqsam.verification.verify.load_runtime",
        lambda *_, **__: (Wrong(Full(model), tripled), tiny_processor()),
    )
    with pytest.raises(ParityError, match=r"expected logits that differ from torch's by at most 0\.5.*got 2"):
        verify_export(exported, model, tiny_processor(), tiny_data(1))
    found = verify_export(exported, model, tiny_processor(), tiny_data(1), min_parity=0)
    assert all(parity.mask_iou == 1 for parity in found.values())


def test_a_decoder_of_one_mask_is_judged_by_that_mask(model: SamModel, tmp_path: Path) -> None:
    export_model(model, tiny_processor(), tmp_path / "one", single_mask=True)
    for parity in verify_export(tmp_path / "one", model, tiny_processor(), tiny_data(3)).values():
        assert parity.decided_iou > 0.98


def test_torch_runs_once_an_image_for_all_runtimes(model: SamModel, tmp_path: Path) -> None:
    export_model(model, tiny_processor(), tmp_path / "export")
    with counted(model.vision_encoder) as calls:
        found = verify_export(tmp_path / "export", model, tiny_processor(), tiny_data(2))
    assert [*found] == ["onnxruntime", "openvino"]
    assert len(calls) == 2


def test_a_runtime_is_freed_before_the_next_one_is_loaded(
    model: SamModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a copy of the weights."""
    backends: list[weakref.ref[Any]] = []

    def load_after_others(*arguments: Any, **settings: Any) -> Any:
        assert all(backend() is None for backend in backends)
        loaded = load_runtime(*arguments, **settings)
        backends.append(weakref.ref(loaded[0]))
        return loaded

    export_model(model, tiny_processor(), tmp_path / "export")
    monkeypatch.setattr("saqsam.verification.verify.load_runtime", load_after_others)
    verify_export(tmp_path / "export", model, tiny_processor(), tiny_data(1))
    assert len(backends) == 2


def test_results_beyond_the_limit_are_computed_again(
    model: SamModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saqsam.verification.parity.MAX_KEPT_IMAGES", 1)
    data = tiny_data(2)
    reference = TorchReference(model, tiny_processor(), data)
    with counted(model.vision_encoder) as calls:
        first, again = ([reference.results(i, data[i]) for i in range(2)] for _ in range(2))
    assert len(calls) == 3
    for one, other in zip(first, again, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.encoded.features, other.encoded.features)
    assert compare_with_torch(TorchBackend(model), tiny_processor(), reference).mask_iou == 1


@pytest.mark.parametrize(("macs", "images"), [(10**9, PARITY_IMAGES), (486 * 10**9, 2), (3 * 10**12, 1)])
def test_large_models_are_compared_on_fewer_images(macs: int, images: int) -> None:
    assert parity_images(macs) == images


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_parity_that_is_no_iou_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="min_parity: expected a number from 0 to 1"):
        runtimes_to_judge("onnx", min_parity=value)


def test_runtimes_that_do_not_run_the_format_are_refused() -> None:
    with pytest.raises(ValueError, match="onnxruntime does not run exports of the format openvino"):
        runtimes_to_judge("openvino", ["onnxruntime"])
    with pytest.raises(ValueError, match="expected one of onnxruntime"):
        runtimes_to_judge("openvino", ["tvm"])


# ---- the command


@pytest.mark.slow
def test_the_command_fails_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "export"
    negate = lambda self, pixels: Features(-decode_encoder(self, pixels).embedding)  # noqa: E731
    decode_encoder = OnnxRuntimeBackend.encode
    monkeypatch.setattr(OnnxRuntimeBackend, "encode", negate)
    assert_refused(
        run("export", checkpoint, "--out", out), "onnxruntime: expected masks", "the encoder differs first"
    )
    assert not list(tmp_path.iterdir())
    assert_done(run("export", checkpoint, "--out", out, "--min-parity", "0"))
    before = (out / "export.json").read_bytes()
    assert_refused(run("export", checkpoint, "--out", out, "--overwrite"), "at least 0.95")
    assert (out / "export.json").read_bytes() == before
    assert_done(run("export", checkpoint, "--out", out, "--overwrite", "--runtime", "openvino"))
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert PARITY_IMAGES >= 2


def test_the_command_refuses_options_before_it_loads_anything(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "export"
    assert_refused(
        run("export", checkpoint, "--out", out, "--min-parity", "2"), "--min-parity: expected a number"
    )
    assert_refused(run("export", checkpoint, "--out", out, "--runtime", "tvm"), "expected one of onnxruntime")
    refused = run("export", checkpoint, "--out", out, "--format", "openvino", "--runtime", "onnxruntime")
    assert_refused(refused, "does not run exports of the format openvino")
    assert not out.exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: expected JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "model.safetensors"),
        (lambda folder: (folder / "processor_config.json").write_text("[]"), "processor_config.json"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    damage(folder)
    assert_refused(run("export", folder, "--out", tmp_path / "export"), words)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_places_that_cannot_be_written_are_refused_before_anything_is_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")

    def fail(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("saqsam.cli.commands.export.load_torch", fail)
    assert_refused(run("export", checkpoint, "--out", tmp_path / "file" / "out"), "is not a folder")
    assert_refused(run("export", checkpoint, "--out", tmp_path / "file", "--overwrite"), "never overwritten")
    assert_refused(run("export", checkpoint, "--out", tmp_path / "folder"), "exists", "--overwrite")
    assert_refused(
        run("export", checkpoint, "--out", tmp_path / "folder", "--overwrite"), "never overwritten"
    )
