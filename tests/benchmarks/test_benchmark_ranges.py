import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from saqsam.models.parts import DECODER_PARTS
from saqsam.models.registry import structure_of
from saqsam.ptq.calibration_images import choose_calibration_images
from saqsam.ptq.focus_search import SEARCHED
from support.script_modules import scripts
from support.tiny_quantized import tiny_data, tiny_recipe
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam

SLOT = "layers.0.cross_attn_token_to_image.key_quantizer"


@pytest.fixture(scope="module")
def ranges() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["ranges"]) as found:
        yield found["ranges"]


def measured(ranges: ModuleType, *, plant: bool) -> dict[str, float]:
    model = tiny_sam()
    images = choose_calibration_images(model, tiny_processor(), tiny_data(), tiny_recipe().calibration)
    if plant:
        with torch.no_grad():
            bias = model.mask_decoder.transformer.layers[0].cross_attn_token_to_image.k_proj.bias
            # A channel in a thousand would be seldom enough; one of sixteen moves the common values too.
            bias[0] += 500.0
    return {found.tensor: found.largest for found in ranges.measure(model, "tiny", images)}


def test_every_searched_tensor_and_kind_of_layer_is_measured(ranges: ModuleType) -> None:
    found = measured(ranges, plant=False)
    attentions = [s for s in structure_of(tiny_config()).attentions if s.part in DECODER_PARTS]
    assert len(found) == len(attentions) * len(SEARCHED) + 4
    assert set(ranges.ENCODER_PARTS) < set(found)


@pytest.mark.slow
def test_a_planted_outlier_is_found_where_it_is(ranges: ModuleType) -> None:
    calm, planted = measured(ranges, plant=False), measured(ranges, plant=True)
    assert planted[SLOT] > 400 > 10 * calm[SLOT]
    before = {name for name in calm if name.startswith("layers.0.self_attn") or "." not in name}
    assert all(planted[name] == calm[name] for name in before)


def test_the_original_encoders_are_summed_up_by_kind_of_layer(ranges: ModuleType, tmp_path: Path) -> None:
    layers = [
        {"layer": f"blocks.{i}.{suffix}", "max": 6.0 * (i + 1), "p50": 2.0}
        for i in range(3)
        for suffix in ranges.ENCODER_PARTS.values()
    ]
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"encoders": {"vit_b": layers}}))
    found = list(ranges.original(path))
    assert [f.tensor for f in found] == list(ranges.ENCODER_PARTS)
    assert {(f.model, f.largest, f.common, f.ratio, f.highest_ratio) for f in found} == {
        ("SAM vit-b", 18.0, 2.0, 6.0, 9.0)
    }


def test_rows_of_other_models_stay_in_the_file(ranges: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "ranges.csv"
    first, second, again = (
        ranges.Ratio(model, "decoder", tensor, largest, 1.0, largest, largest)
        for model, tensor, largest in (("a", "x", 2.0), ("b", "x", 3.0), ("a", "y", 4.0))
    )
    ranges.write_ratios(path, [first])
    ranges.write_ratios(path, [second])
    ranges.write_ratios(path, [again])
    heading, *lines = path.read_text().splitlines()
    assert heading == "model,where,tensor,largest,common,ratio,highest_ratio"
    assert [line.split(",")[::3] for line in lines] == [["a", "4.0000", "4.0000"], ["b", "3.0000", "3.0000"]]
