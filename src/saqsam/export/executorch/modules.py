"""Traceable modules by SAM family, the interface of the family folders to the writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from saqsam.export.executorch.mobile_sam.encoder import TracedMobileSamEncoder
from saqsam.export.executorch.sam.decoder import TracedDecoder
from saqsam.export.executorch.sam.encoder import TracedEncoder
from saqsam.export.executorch.sam2.decoder import TracedSam2Decoder
from saqsam.export.executorch.sam2.encoder import TracedSam2Encoder
from saqsam.export.executorch.sam3_tracker.encoder import TracedSam3TrackerEncoder
from saqsam.export.executorch.sam_hq.decoder import TracedSamHQDecoder
from saqsam.export.executorch.sam_hq.encoder import TracedSamHQEncoder
from saqsam.export.packed import ExportError
from saqsam.models.registry import family_of

XNNPACK_BLOCK_LOGITS = 2**24
"""Logits of one block of a global attention: one head of SAM-B at 1024 px. Smaller blocks make lowering slow."""


@dataclass(frozen=True)
class TracedFamily:
    """Modules to be traced for the models of a family.

    Attributes:
        encoder: Function from a model to the encoder, from pixel values to the feature maps of `InputSpec.features`.
        decoder: Class of the decoder, from the feature maps and the inputs of `TracedDecoder.forward` to predicted
            IoUs, masks and whatever else it predicts.
        prompts: Largest number of prompts per call, for which the program plans its memory.
    """

    encoder: Callable[[Any], nn.Module]
    decoder: type[TracedDecoder]
    prompts: int = 32


TRACED_FAMILIES: Mapping[str, TracedFamily] = {
    "sam": TracedFamily(lambda model: TracedEncoder(model, XNNPACK_BLOCK_LOGITS), TracedDecoder),
    # The convolutions of the high-quality mask take 40 MB for each prompt at 1024 px.
    "sam_hq": TracedFamily(
        lambda model: TracedSamHQEncoder(model, XNNPACK_BLOCK_LOGITS), TracedSamHQDecoder, prompts=8
    ),
    "mobile_sam": TracedFamily(TracedMobileSamEncoder, TracedDecoder),
    "sam2": TracedFamily(lambda model: TracedSam2Encoder(model, XNNPACK_BLOCK_LOGITS), TracedSam2Decoder),
    "sam3_tracker": TracedFamily(
        lambda model: TracedSam3TrackerEncoder(model, XNNPACK_BLOCK_LOGITS), TracedSam2Decoder
    ),
}
"""Modules by the family's name."""


def traced_family(config: Any) -> TracedFamily:
    """Return the modules of a configuration's family.

    Raises:
        ExportError: The family has none yet.
    """
    family = family_of(config)
    if family.name not in TRACED_FAMILIES:
        raise ExportError(f"{family.label} models cannot be exported to ExecuTorch yet")
    return TRACED_FAMILIES[family.name]
