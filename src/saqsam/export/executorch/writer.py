"""Write a quantized SAM as ExecuTorch programs for XNNPACK: `encoder.pte` and `decoder.pte`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from saqsam.export.executorch.delegation import Delegation, inspect_delegation
from saqsam.export.executorch.layers import FloatConvolution, RowLinear, StoredTensor
from saqsam.export.executorch.modules import traced_family
from saqsam.export.executorch.sam.decoder import EMPTY_LABEL
from saqsam.export.packed import ExportError
from saqsam.models.registry import family_of
from saqsam.quant.layers import PackedTensor
from saqsam.utils.quiet_logging import quiet_logging

with quiet_logging():
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

MAX_POINTS = 16
"""Number of points per prompt in the trace, including corners of its box and padding."""


def write_executorch(
    model: Any, folder: Path, metadata: dict[str, str], *, single_mask: bool
) -> dict[str, Any]:
    """Write both programs into a folder.

    Args:
        model: Quantized model.
        folder: Existing folder.
        metadata: Ignored: programs cannot store metadata.
        single_mask: Let the decoder return one mask per prompt.

    Returns:
        Details for the manifest, as JSON types: `delegation` of each program, `substitutions`, and the largest numbers
        of `prompts` per call and `points` per prompt.

    Raises:
        ExportError: XNNPACK's integer kernels cannot run the recipe, a quantized layer was not delegated to them, or
            the model's family has no modules to be traced.
    """
    modules, spec = traced_family(model.config), family_of(model.config).input_spec(model.config)
    pixels = torch.zeros(spec.pixels)
    # Two prompts, because torch.export specializes on dimensions of size 1.
    example = (
        *(torch.zeros(shape) for shape in spec.features.values()),
        torch.zeros(2, MAX_POINTS, 2),
        torch.full((2, MAX_POINTS), float(EMPTY_LABEL)),
        torch.zeros(1, 1, spec.mask_size, spec.mask_size),
        torch.zeros(1),
    )
    prompts = {0: Dim("prompts", min=1, max=modules.prompts)}
    dynamic = (*(None for _ in spec.features), prompts, prompts, None, None)
    encoder = modules.encoder(model)
    decoder = modules.decoder(model, single_mask=single_mask)
    programs = {"encoder": (encoder, (pixels,), None), "decoder": (decoder, example, dynamic)}
    delegations = {}
    for part, (module, inputs, shapes) in programs.items():
        content, delegation = _lower(module.eval(), inputs, shapes)
        _check(part, module, delegation)
        (folder / f"{part}.pte").write_bytes(content)
        delegations[part] = delegation.to_dict()
    return {
        "delegation": delegations,
        "substitutions": substitutions(model, (encoder, decoder)),
        "prompts": modules.prompts,
        "points": MAX_POINTS,
    }


def _lower(module: nn.Module, inputs: tuple[Tensor, ...], shapes: Any) -> tuple[bytes, Delegation]:
    """Trace a module and lower it to XNNPACK; return the program and its delegation."""
    with quiet_logging(), torch.no_grad():
        traced = torch.export.export(module, inputs, dynamic_shapes=shapes)
        lowered = to_edge_transform_and_lower(
            traced,
            partitioner=[XnnpackPartitioner()],
            # The validity check refuses operators on uint8 outside of the core set, which the runtime implements.
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        delegation = inspect_delegation(lowered.exported_program().graph_module)
        return bytes(lowered.to_executorch().buffer), delegation


def _check(part: str, module: nn.Module, delegation: Delegation) -> None:
    """Raise ExportError unless XNNPACK runs every quantized layer with an integer kernel of the stored bits."""
    expected = Counter(
        f"qd8-f32-qc{m.packed.bits}w" for m in module.modules() if isinstance(m, RowLinear) and m.is_quantized
    )
    if expected != Counter(delegation.integer_products):
        raise ExportError(
            f"{part}: expected XNNPACK to take all quantized layers ({dict(expected)}), it took "
            f"{delegation.integer_products}: install a version of executorch that saqsam was tested with"
        )


def substitutions(model: Any, traced: tuple[nn.Module, ...]) -> list[str]:
    """Describe what the files store in another form than the checkpoint, without any effect on the outputs."""
    notes = []
    widths = Counter(m.bits for m in model.modules() if isinstance(m, PackedTensor) and m.bits not in (4, 8))
    for bits, count in sorted(widths.items()):
        notes.append(f"{count} weights of {bits} bits are stored in {4 if bits < 4 else 8}")
    modules = [module for part in traced for module in part.modules()]
    if any(isinstance(module, StoredTensor) for module in modules):
        notes.append(
            "packed embeddings are stored in 8 bits and dequantized when the program runs, as in torch"
        )
    if any(isinstance(module, FloatConvolution) and module.is_packed for module in modules):
        notes.append("packed weights of float convolutions are stored in float32, with their rounded values")
    notes.append("quantized convolutions are matrix products on rows; float tensors are stored in float32")
    notes.append(
        f"prompts are padded to {MAX_POINTS} points with the label {EMPTY_LABEL}, which attention masks out"
    )
    return notes
