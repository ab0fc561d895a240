"""ExecuTorch programs of a quantized SAM for XNNPACK: `encoder.pte` and `decoder.pte`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import SamModel

from saqsam.export.executorch.delegation import Delegation, inspect
from saqsam.export.executorch.layers import RowProduct, StoredTensor
from saqsam.export.executorch.sam.decoder import EMPTY, TracedDecoder
from saqsam.export.executorch.sam.encoder import TracedEncoder
from saqsam.export.packed import ExportError
from saqsam.models.registry import family_of
from saqsam.quant.layers import PackedTensor
from saqsam.utils.quiet_logging import quiet_logging

with quiet_logging():
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

MAX_PROMPTS = 32
"""Prompts of one call: memory between delegated parts is laid out for so many."""
MAX_POINTS = 16
"""Places for the points of a prompt, corners of its box and padding included."""
XNNPACK_BLOCK_LOGITS = 2**24
"""Of a global attention: one head of SAM-B at 1024 px. Smaller blocks make graphs that take long to lower."""


def write_executorch(
    model: SamModel, folder: Path, metadata: dict[str, str], *, single_mask: bool
) -> dict[str, Any]:
    """Write both programs into a folder; a `Writer`. Programs have no place for metadata.

    Returns:
        What `export.json` says of them, as JSON types: `delegation` of each, `substitutions`, and the most `prompts`
        and `points` of a call.

    Raises:
        ExportError: If the recipe has what XNNPACK's integer kernels cannot run, or one of its layers was left to
            other kernels.
    """
    spec = family_of(model.config).input_spec(model.config)
    pixels = torch.zeros(spec.pixels)
    # Two prompts: a trace of one would be of one alone.
    given = (
        torch.zeros(spec.embedding),
        torch.zeros(2, MAX_POINTS, 2),
        torch.full((2, MAX_POINTS), float(EMPTY)),
        torch.zeros(1, 1, spec.mask_size, spec.mask_size),
        torch.zeros(1),
    )
    prompts = {0: Dim("prompts", min=1, max=MAX_PROMPTS)}
    free = (None, prompts, prompts, None, None)
    encoder = TracedEncoder(model, XNNPACK_BLOCK_LOGITS)
    decoder = TracedDecoder(model, single_mask=single_mask)
    programs = {"encoder": (encoder, (pixels,), None), "decoder": (decoder, given, free)}
    delegation = {}
    for part, (module, inputs, shapes) in programs.items():
        content, found = _lower(module.eval(), inputs, shapes)
        _check(part, module, found)
        (folder / f"{part}.pte").write_bytes(content)
        delegation[part] = found.to_dict()
    return {
        "delegation": delegation,
        "substitutions": substitutions(model, (encoder, decoder)),
        "prompts": MAX_PROMPTS,
        "points": MAX_POINTS,
    }


def _lower(module: nn.Module, inputs: tuple[Tensor, ...], shapes: Any) -> tuple[bytes, Delegation]:
    """A program, and what of it XNNPACK takes."""
    with quiet_logging(), torch.no_grad():
        traced = torch.export.export(module, inputs, dynamic_shapes=shapes)
        lowered = to_edge_transform_and_lower(
            traced,
            partitioner=[XnnpackPartitioner()],
            # Operators on unsigned codes are no part of the core set that validity means; the runtime has them.
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        found = inspect(lowered.exported_program().graph_module)
        return bytes(lowered.to_executorch().buffer), found


def _check(part: str, module: nn.Module, found: Delegation) -> None:
    """Raise ExportError unless every quantized layer has an integer kernel of the width that its file has."""
    wanted = Counter(
        f"qd8-f32-qc{m.packed.bits}w"
        for m in module.modules()
        if isinstance(m, RowProduct) and m.is_quantized
    )
    if wanted != Counter(found.integer_products):
        raise ExportError(
            f"{part}: expected XNNPACK to take all quantized layers ({dict(wanted)}), it took "
            f"{found.integer_products}: this version of executorch is not one that saqsam was tested with"
        )


def substitutions(model: SamModel, traced: tuple[nn.Module, ...]) -> list[str]:
    """What is in the files in another form than in the checkpoint; none of it changes what is computed."""
    found = []
    widths = Counter(m.bits for m in model.modules() if isinstance(m, PackedTensor) and m.bits not in (4, 8))
    for bits, count in sorted(widths.items()):
        found.append(f"{count} weights of {bits} bits are stored in {4 if bits < 4 else 8}")
    modules = [module for part in traced for module in part.modules()]
    if any(isinstance(module, StoredTensor) for module in modules):
        found.append(
            "packed embeddings are stored in 8 bits and computed in float when the program runs, as in torch"
        )
    found.append("convolutions are products on rows; what stays float is stored in float32")
    found.append(
        f"points are filled up to {MAX_POINTS} a prompt with the label {EMPTY}, which attention does not see"
    )
    return found
