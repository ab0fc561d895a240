"""The rivals from float to checkpoint: tables in their slots, and the same masks from disk, bit for bit."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import WEIGHTS, checkpoint_tensors, load_checkpoint, save_checkpoint
from saqsam.checkpoint.tensors import check_values
from saqsam.export import export_model
from saqsam.models.parts import POST_GELU_PARTS
from saqsam.ptq.finished_steps import place_tensors
from saqsam.ptq.pipeline import quantize
from saqsam.quant.affine import AffineQuantizer
from saqsam.quant.integer import TABLE_INPUT, choose_kernel
from saqsam.quant.logarithmic import LogQuantizer
from saqsam.quant.tables import TableQuantizer
from saqsam.report.labels import describe
from saqsam.runtimes.torch_integer import find_integer_layers, use_integer_kernels
from saqsam.utils.errors import CheckpointError
from support.tiny_quantized import (
    assert_same_outputs,
    outputs,
    quantized_tiny,
    tiny_data,
    tiny_plan,
    tiny_recipe,
)
from support.tiny_sam import tiny_processor, tiny_sam

RIVALS = ("repq-vit", "adalog", "ahcptq-s", "ahcptq")
TABLES = ("adalog", "ahcptq-s", "ahcptq")
LEVELS = "vision_encoder.layers.0.mlp.lin2.input_quantizer.levels"


@pytest.mark.parametrize("method", RIVALS)
def test_checkpoints_give_the_same_masks_bit_for_bit(method: str, tmp_path: Path) -> None:
    model = quantized_tiny(method, "w4a5")
    folder = save_checkpoint(model, tiny_processor(), tmp_path / "out")
    loaded = load_checkpoint(folder)
    assert_same_outputs(loaded, model)
    stored = load_file(folder / WEIGHTS)
    for slot in tiny_plan(tiny_recipe(method, "w4a5")).slots:
        quantizer = loaded.get_submodule(slot.name)
        is_table = slot.part in POST_GELU_PARTS and method in TABLES
        assert isinstance(quantizer, TableQuantizer) == is_table
        if is_table:
            levels = stored[f"{slot.name}.levels"]
            assert (levels.dtype, levels.shape) == (torch.float32, (32,))
            assert len(levels.unique()) > 16
            assert f"{slot.name}.scale" not in stored
        elif slot.name.endswith("probability_quantizer"):
            assert isinstance(quantizer, LogQuantizer)
            assert method != "repq-vit" or int(quantizer.tau) == 2
        else:
            assert isinstance(quantizer, AffineQuantizer)


def test_inputs_of_a_layer_are_levels() -> None:
    model = copy.deepcopy(quantized_tiny("adalog", "w4a3"))
    layer = model.get_submodule(LEVELS.rpartition(".")[0].rpartition(".")[0])
    seen: list[Tensor] = []
    layer.input_quantizer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    outputs(model)
    assert len(seen) == 2
    assert set(seen[0].unique().tolist()) <= set(layer.input_quantizer.levels.tolist())
    assert len(seen[0].unique()) > 2


@pytest.mark.parametrize("method", ["adalog", "ahcptq"])
def test_an_interrupted_run_resumes_to_the_same_bits(method: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(phase: str, *_: object) -> None:
        if phase == "packing weights":
            raise Stop

    recipe, steps = tiny_recipe(method), tmp_path / "steps"
    with pytest.raises(Stop):
        quantize(tiny_sam(), tiny_processor(), recipe, tiny_data(), resume_dir=steps, progress=stop)
    assert (steps / "ranges.safetensors").is_file()
    resumed = quantize(tiny_sam(), tiny_processor(), recipe, tiny_data(), resume_dir=steps).model
    assert_same_outputs(resumed, quantized_tiny(method))


# ---- levels from disk

BAD_LEVELS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": lambda levels: levels * float("nan"),
    "infinite": lambda levels: torch.cat([levels[:-1], torch.tensor([float("inf")])]),
    "beyond float16": lambda levels: levels - 1e5,
    "descending": lambda levels: levels.flip(0),
}


@pytest.mark.parametrize("case", BAD_LEVELS)
def test_impossible_levels_are_refused(case: str) -> None:
    model = quantized_tiny("adalog")
    tensors = checkpoint_tensors(model)
    check_values(tensors, model, tiny_recipe("adalog"), "file")
    tensors[LEVELS] = BAD_LEVELS[case](tensors[LEVELS])
    with pytest.raises(CheckpointError, match=rf"file: {LEVELS} must ascend from at least -65504"):
        check_values(tensors, model, tiny_recipe("adalog"), "file")
    with pytest.raises(CheckpointError, match="is damaged"):
        place_tensors(model, {LEVELS: tensors[LEVELS]}, [LEVELS], Path("ranges.safetensors"))


def test_levels_stay_float32_in_bfloat16() -> None:
    model = copy.deepcopy(quantized_tiny("ahcptq-s"))
    levels = model.get_buffer(LEVELS).clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.get_buffer(LEVELS), levels)
    assert outputs(model)["box_masks"].dtype == torch.bfloat16


# ---- everything else that meets a table


def test_exports_are_refused_in_one_line(tmp_path: Path) -> None:
    model = copy.deepcopy(quantized_tiny("ahcptq-s", "w4a8"))
    message = r"^onnx multiplies uniform codes alone, but inputs after a GELU have gelu=hybrid: choose .*$"
    with pytest.raises(ValueError, match=message) as error:
        export_model(model, tiny_processor(), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_integer_kernels_leave_tables_to_dequantized_floats() -> None:
    model = copy.deepcopy(quantized_tiny("adalog"))
    expected = outputs(model)
    layer = model.get_submodule("vision_encoder.layers.0.mlp.lin2")
    assert choose_kernel(layer) == TABLE_INPUT
    use_integer_kernels(model)
    assert find_integer_layers(model).dequantized[TABLE_INPUT] == 4
    assert outputs(model)["box_masks"].shape == expected["box_masks"].shape


def test_the_inventory_counts_levels_as_scales_and_knows_their_range() -> None:
    plain, table = (
        {part.part: part for part in take_inventory(quantized_tiny(method)).parts}["encoder.lin2"]
        for method in ("ptq4sam-s", "adalog")
    )
    blocks = 4
    # 16 levels instead of a scale and a zero point.
    assert table.scale_bytes - plain.scale_bytes == blocks * (16 * 4 - 8)
    assert table.float_bytes == plain.float_bytes
    model = quantized_tiny("adalog")
    ranges = [
        model.get_submodule(f"vision_encoder.layers.{block}.mlp.lin2.input_quantizer").range
        for block in range(blocks)
    ]
    assert (table.low, table.high) == (min(low for low, _ in ranges), max(high for _, high in ranges))


def test_reports_describe_tables_and_groups() -> None:
    sentences = {method: " ".join(describe(tiny_recipe(method), None)) for method in RIVALS}
    assert "after a GELU: logarithmic codes" in sentences["adalog"]
    assert "after a GELU: powers of 2" in sentences["ahcptq"]
    assert "after a GELU" not in sentences["repq-vit"]
    assert "channels that share a scale after a normalization were" in sentences["repq-vit"]
    assert "after a normalization, in 4 groups, were" in sentences["ahcptq-s"]
