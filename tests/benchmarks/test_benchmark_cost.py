"""The clipping search and the plain one of the cost benchmark run on the same tensors."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import nn

from saqsam.convert.plan import plan_quantization
from saqsam.convert.prepare import prepare
from saqsam.models.sam.attention import QuantDecoderAttention
from saqsam.ptq.focus_search import SEARCHED, FocusSearch
from support.script_modules import scripts
from support.tiny_quantized import tiny_recipe
from support.tiny_sam import tiny_config, tiny_sam


@pytest.fixture(scope="module")
def cost() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["ptq_cost"]) as found:
        yield found["ptq_cost"]


@torch.no_grad()
def test_both_searches_look_at_all_candidates_and_leave_the_attention_as_it_was(
    cost: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_sam()
    prepare(model, plan_quantization(tiny_config(), tiny_recipe()))
    attention = model.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    assert isinstance(attention, QuantDecoderAttention)
    shapes = ((3, 1, 7, 32), (1, 1, 64, 32), (1, 1, 64, 32))
    query, key, value = (torch.randn(shape) for shape in shapes)
    search = FocusSearch(attention, [(query, key, value)], 0.5)
    seen = []
    forward = type(attention).forward
    monkeypatch.setattr(
        type(attention), "forward", lambda self, *args: seen.append(len(args)) or forward(self, *args)
    )
    cost._fast(search)
    assert seen == [], "no forward of the attention"
    cost._plain(search)
    assert len(seen) == len(SEARCHED) * 29
    for slot in cost.SLOTS:
        assert isinstance(attention.get_submodule(slot), nn.Identity)
