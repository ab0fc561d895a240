"""What layers cost, measured by exchanging them; what activations look like; and the form both are in."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import saqsam
from saqsam.convert.plan import plan_quantization
from saqsam.evaluation import evaluate
from saqsam.models.processing import build_processor
from saqsam.quant.layers import PackedTensor
from saqsam.quant.range_observers import HistogramObserver
from saqsam.recipes.presets import recipe_for
from saqsam.recipes.recipe import Calibration
from saqsam.report.distributions import (
    clipped_beyond,
    cumulative,
    equal_steps,
    find_distributions,
    share_outside,
)
from saqsam.report.reference import Reference, check_reference, make_reference
from saqsam.report.sensitivity import exchanged, find_groups, measure_sensitivity
from support.tiny_mobile_sam import tiny_mobile_sam
from support.tiny_quantized import (
    assert_same_outputs,
    outputs,
    quantize_tiny,
    quantized_tiny,
    tiny_data,
    tiny_plan,
    tiny_recipe,
)
from support.tiny_sam import tiny_processor, tiny_sam
from support.tiny_sam2 import tiny_sam2, tiny_sam2_processor
from support.tiny_sam3_tracker import tiny_sam3_tracker, tiny_sam3_tracker_processor
from support.tiny_sam_hq import tiny_sam_hq, tiny_sam_hq_processor


@pytest.fixture(scope="module", params=["min-max", "saq-sam-plus"])
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def reference(method: str) -> Reference:
    return make_reference(tiny_sam(), tiny_processor(), tiny_recipe(method), tiny_data())


def test_the_reference_computes_what_the_float_model_does_and_its_weights_are_those_that_were_rounded(
    method: str, reference: Reference
) -> None:
    before, after = outputs(tiny_sam()), outputs(reference.model)
    for name, expected in before.items():
        torch.testing.assert_close(after[name], expected, rtol=0.01, atol=0.02 * float(expected.abs().max()))
    recipe, quantized = tiny_recipe(method), quantized_tiny(method)
    check_reference(reference.model, quantized, recipe)
    for site, _ in plan_quantization(quantized.config, recipe).weights:
        packed = quantized.get_submodule(site.name).weight
        assert isinstance(packed, PackedTensor)
        off = (packed() - reference.model.get_submodule(site.name).weight).abs()
        step = packed.scale.reshape([-1 if axis == packed.axis else 1 for axis in range(off.dim())])
        inside = off / step
        if recipe.compensation is None:  # which moves weights further
            assert float((inside < 1.01).float().mean()) > 0.95, site.name  # but for what ranges clip


def test_another_model_is_no_reference() -> None:
    recipe = tiny_recipe("min-max")
    other = make_reference(tiny_sam(seed=5), tiny_processor(), recipe, tiny_data())
    with pytest.raises(ValueError, match="not those of this float model"):
        check_reference(other.model, quantized_tiny("min-max"), recipe)


def test_groups_hold_everything_that_is_quantized_once() -> None:
    recipe = tiny_recipe("min-max")
    model = quantized_tiny("min-max")
    for level in ("parts", "layers"):
        groups = find_groups(tiny_plan(recipe), level)  # type: ignore[arg-type]
        names = [name for group in groups for name in group.modules]
        assert len(set(names)) == len(names)
        packed = {n.removesuffix(".weight") for n, m in model.named_modules() if isinstance(m, PackedTensor)}
        assert packed <= set(names)
        slots = {n for n, _ in model.named_modules() if n.endswith("_quantizer") and "input" not in n}
        assert {n for n in names if n.endswith("_quantizer")} == slots
    assert {group.name for group in find_groups(tiny_plan(recipe), "parts")} >= {"neck", "decoder.mlp"}
    decoder = {g.name for g in find_groups(tiny_plan(recipe), "parts") if g.is_decoder}
    assert all(name.startswith("decoder.") for name in decoder)
    assert len(decoder) == 5


def test_all_groups_exchanged_is_the_other_model_and_nothing_stays() -> None:
    # Only without reconstruction of what belongs to no layer is nothing left of the model around.
    recipe, quantized = tiny_recipe("min-max"), quantize_tiny(tiny_recipe("min-max"))
    plain = make_reference(tiny_sam(), tiny_processor(), recipe, tiny_data())
    names = [n for g in find_groups(plan_quantization(quantized.config, recipe), "parts") for n in g.modules]
    with exchanged(plain.model, quantized, names):
        assert_same_outputs(plain.model, quantized)

    def fail() -> None:
        with exchanged(quantized, plain.model, names):
            assert_same_outputs(quantized, plain.model)
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert_same_outputs(quantized, quantized_tiny("min-max"))


def test_sensitivity_by_other_means() -> None:
    recipe, quantized, data = tiny_recipe("min-max"), quantized_tiny("min-max"), tiny_data(3)
    made = make_reference(tiny_sam(), tiny_processor(), recipe, data)
    calls: list[tuple[str, int, int]] = []
    found = measure_sensitivity(
        made.model, quantized, tiny_processor(), recipe, data, images=2, progress=lambda *a: calls.append(a)
    )
    assert (found.images, found.dataset) == (2, "scenes")
    assert calls[0] == ("sensitivity", 0, 2 * len(found.groups))
    assert calls[-1] == ("sensitivity", 2 * len(found.groups), 2 * len(found.groups))
    assert found.objects == sum(len(data[i].instances) for i in range(2))
    for model, expected in ((quantized, found.quantized_miou), (made.model, found.float_miou)):
        assert evaluate(model, tiny_processor(), data, limit=2).metrics["prompt"]["miou"] == pytest.approx(
            expected
        )
    for group in find_groups(plan_quantization(quantized.config, recipe), "parts"):
        (entry,) = (entry for entry in found.groups if entry.name == group.name)
        for model, donor, miou in (
            (made.model, quantized, entry.alone_miou),
            (quantized, made.model, entry.without_miou),
        ):
            with exchanged(model, donor, group.modules):
                assert evaluate(model, tiny_processor(), data, limit=2).metrics["prompt"][
                    "miou"
                ] == pytest.approx(miou)
        assert 0 < entry.alone <= 1
        assert 0 < entry.without <= 1
    assert 0 < found.quantized < 1
    with pytest.raises(ValueError, match="expected images with objects"):
        measure_sensitivity(made.model, quantized, tiny_processor(), recipe, tiny_data(1), images=0)


def test_eight_bits_are_nearly_float_alone() -> None:
    recipe = tiny_recipe("min-max", "w8a8")
    quantized = quantize_tiny(recipe)
    made = make_reference(tiny_sam(), tiny_processor(), recipe, tiny_data())
    found = measure_sensitivity(made.model, quantized, tiny_processor(), recipe, tiny_data(2), images=2)
    assert all(entry.alone > 0.9 for entry in found.groups)


def seen(*values: float) -> HistogramObserver:
    observer = HistogramObserver()
    observer(torch.tensor(values))
    return observer


def test_shares_of_known_values() -> None:
    observer = seen(*np.linspace(-4, 4, 8001).tolist())
    assert share_outside(observer, -4, 4) == 0
    assert share_outside(observer, -2, 3) == pytest.approx(3 / 8, abs=0.01)
    assert share_outside(observer, -9, 9) == 0
    shares = equal_steps(observer, 16)
    assert float(shares.sum()) == pytest.approx(1)
    assert shares.tolist() == pytest.approx([1 / 16] * 16, abs=0.005)
    points = torch.tensor([-9.0, 0.0, 9.0], dtype=torch.float64)
    assert cumulative(observer, points).tolist() == pytest.approx([0, 0.5, 1], abs=0.01)
    # 15 steps of 1; half a one beyond the ends is rounded, not clipped.
    assert clipped_beyond((-7.0, 8.0), 4) == (-7.5, 8.5)
    # Values that are all the same, such as those of a token.
    assert share_outside(seen(3.0, 3.0), 0, 2) == 1
    assert share_outside(seen(3.0, 3.0), 0, 4) == 0
    assert float(equal_steps(seen(3.0, 3.0), 4).sum()) == pytest.approx(1)


def test_distributions_are_of_all_static_ranges_worst_first(method: str, reference: Reference) -> None:
    found = find_distributions(quantized_tiny(method), tiny_recipe(method), reference.observers)
    assert len(found) > 40
    shares = [entry.outside for entry in found]
    assert shares == sorted(shares, reverse=True)
    for entry in found:
        quantizer = quantized_tiny(method).get_submodule(entry.slot)
        assert entry.range == quantizer.range  # type: ignore[operator]
        assert math.fsum(entry.shares) == pytest.approx(1)
    if method == "min-max":
        assert max(shares) < 0.01  # the range is that of what was seen
    else:
        assert max(shares) > 0.01


def test_dynamic_and_logarithmic_ranges_have_no_distribution() -> None:
    recipe = tiny_recipe("saq-sam-plus")
    assert recipe.probabilities.kind == "log"
    made = make_reference(tiny_sam(), tiny_processor(), recipe, tiny_data())
    found = find_distributions(quantized_tiny("saq-sam-plus"), recipe, made.observers)
    assert not [entry for entry in found if entry.slot.endswith("probability_quantizer")]
    assert recipe_for("mse").calibration == Calibration()


@pytest.mark.parametrize(
    ("model", "processor"),
    [
        (tiny_sam2, tiny_sam2_processor),
        (tiny_sam_hq, tiny_sam_hq_processor),
        (tiny_sam3_tracker, tiny_sam3_tracker_processor),
        (tiny_mobile_sam, None),
    ],
    ids=["sam2", "sam_hq", "sam3_tracker", "mobile_sam"],
)
@pytest.mark.parametrize("method", ["mse", "saq-sam-plus"])
def test_every_family_has_a_reference(model: Any, processor: Any, method: str) -> None:
    # Families that are simplified before they are quantized have other weights than their float models.
    made, recipe = model(), tiny_recipe(method)
    fitting = build_processor(made.config) if processor is None else processor()
    quantized = saqsam.quantize(made, fitting, recipe, calibration=tiny_data(2)).model
    reference = make_reference(made, fitting, recipe, tiny_data(2)).model
    check_reference(reference, quantized, recipe)
    found = measure_sensitivity(reference, quantized, fitting, recipe, tiny_data(1), images=1)
    assert {"neck", "decoder.mlp"} <= {group.name for group in found.groups}
    assert all(0 <= group.alone <= 1 for group in found.groups)
