"""The dynamic choice of SAM 2's single mask by its stability (`dynamic_multimask_via_stability`)."""

from __future__ import annotations

import torch
from torch import Tensor


def select_by_stability(
    logits: Tensor, ious: Tensor, delta: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return each prompt's single mask or, where it is unstable, the one of the others with the best predicted IoU.

    The stability of a mask is the IoU of the masks at thresholds `delta` and `-delta`; 1 for an empty mask.

    Args:
        logits: [P, M, h, w], the single mask first.
        ious: Predicted IoUs [P, M].
        delta: Distance of the thresholds from 0.
        threshold: Least stability of the single mask.

    Returns:
        Logits [P, 1, h, w] and predicted IoUs [P, 1].
    """
    single = logits[:, 0].flatten(1)
    inner, outer = (single > delta).sum(1).float(), (single > -delta).sum(1).float()
    is_stable = torch.where(outer > 0, inner / outer, 1.0) >= threshold
    best = 1 + ious[:, 1:].argmax(1)
    chosen = torch.where(is_stable, torch.zeros_like(best), best)
    prompts = torch.arange(len(logits), device=logits.device)
    return logits[prompts, chosen][:, None], ious[prompts, chosen][:, None]
