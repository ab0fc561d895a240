"""Convert a quantized model back to transformers' own float model."""

from __future__ import annotations

import torch
from transformers import SamModel

from saqsam.convert.position_embedding import position_embedding
from saqsam.models.building import build_model
from saqsam.models.registry import family_of, structure_of
from saqsam.quant.layers import ChannelScale, PackedLayer, PackedLinear


@torch.no_grad()
def dequantized(model: SamModel) -> SamModel:
    """Return a float model with the dequantized weights of a quantized model.

    The result consists of transformers' own layers and attentions, without activation quantizers. Offsets and gains of
    `ChannelScale`s are folded into the weights and biases that follow them. Apart from the last bits of float32, the
    outputs equal those of the quantized model without its activation quantizers.

    Args:
        model: The quantized model, which is not modified.

    Returns:
        A model in float32 and eval mode, on the same device.
    """
    fields = model.config.to_dict()
    fields.pop("quantization_config", None)
    config = type(model.config).from_dict(fields)
    with torch.device("meta"):
        names = family_of(config).build(config).state_dict().keys()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLayer):
            weight, bias = layer.weight(), layer.bias
            if isinstance(layer, PackedLinear) and isinstance(layer.input_scale, ChannelScale):
                weight = weight * layer.input_scale.gain
                shift = weight @ layer.input_scale.offset
                bias = -shift if bias is None else bias - shift
            tensors[f"{name}.weight"] = weight
            if bias is not None:
                tensors[f"{name}.bias"] = bias
    structure = structure_of(config)
    positions = position_embedding(model, structure)
    if positions is not None and structure.position_embedding is not None:
        tensors[structure.position_embedding] = positions
    plain = family_of(config).plain_tensors(config, tensors)
    return build_model(config, plain, source="the quantized model", device=model.device)
