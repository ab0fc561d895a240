"""Every kind of activation quantizer is complete: it can be created for loading, and its learned form fits."""

from typing import get_args

import pytest
import torch

from saqsam.convert.plan import LINEAR_CHANNELS, Slot, SlotKind
from saqsam.convert.quantizer_kinds import QUANTIZER_KINDS, learned_form
from saqsam.quant.affine import AffineQuantizer


def test_every_kind_that_a_slot_can_have_is_listed() -> None:
    assert tuple(QUANTIZER_KINDS) == get_args(SlotKind)


@pytest.mark.parametrize("name", QUANTIZER_KINDS)
def test_empty_quantizers_are_of_their_kind(name: SlotKind) -> None:
    kind = QUANTIZER_KINDS[name]
    quantizer = kind.empty(Slot("a.input_quantizer", "neck", 5, name, LINEAR_CHANNELS))
    assert type(quantizer) is kind.quantizer
    assert quantizer.bits == 5
    assert (learned_form(quantizer) is None) == (kind.learned is None)
    # What needs no observer has nothing to load either.
    assert kind.needs_observer == bool(quantizer.state_dict())


def test_the_learned_form_starts_from_the_quantizer() -> None:
    quantizer = AffineQuantizer(4, torch.tensor(0.25), torch.tensor(3))
    learned = learned_form(quantizer)
    assert learned is not None
    values = torch.linspace(-2, 2, 9)
    assert torch.allclose(learned(values), quantizer(values))
