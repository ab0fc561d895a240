"""A packed model answers transformers' questions about its size."""

import copy

import pytest
import torch
from transformers import SamModel

from saqsam.quant.layers import ChannelScale
from support.tiny_quantized import mixed_tiny, quantized_tiny
from support.tiny_sam import tiny_sam


def added(model: SamModel) -> int:
    """Count the channel scales' parameters, which the float model does not have."""
    scales = [module for module in model.modules() if isinstance(module, ChannelScale)]
    return sum(parameter.numel() for module in scales for parameter in module.parameters())


@pytest.mark.parametrize("make", [quantized_tiny, mixed_tiny, lambda: quantized_tiny("saq-sam-plus")])
def test_packed_weights_count_as_parameters(make: object) -> None:
    model = make()  # type: ignore[operator]
    expected = tiny_sam().num_parameters() + added(model)
    assert model.num_parameters() == copy.deepcopy(model).num_parameters() == expected
    assert model.num_parameters(only_trainable=True) == 0
    embeddings = tiny_sam().num_parameters() - tiny_sam().num_parameters(exclude_embeddings=True)
    assert model.num_parameters(exclude_embeddings=True) == expected - embeddings


def test_the_memory_footprint_is_that_of_the_packed_tensors() -> None:
    model = quantized_tiny()
    tensors = [*model.parameters(), *model.buffers()]
    assert model.get_memory_footprint() == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    packed = sum(tensor.numel() for name, tensor in model.state_dict().items() if name.endswith(".codes"))
    assert packed < model.get_memory_footprint() < tiny_sam().get_memory_footprint() / 2
    assert copy.deepcopy(model).to(torch.bfloat16).get_memory_footprint() < model.get_memory_footprint()
