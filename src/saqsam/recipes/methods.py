"""The methods: one short function per method that returns its `Recipe`, so that two can be compared by eye."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from saqsam.recipes.catalog import WEIGHT_ONLY
from saqsam.recipes.compensation import Compensation
from saqsam.recipes.equalization import Equalization
from saqsam.recipes.recipe import Recipe
from saqsam.recipes.specs import Clipping, ProbabilitySpec, QuantSpec, Reconstruction

QDROP = Reconstruction(unit="block", loss="output", target="float", scales=True, drop=0.5)
"""Block reconstruction of QDrop (arXiv 2203.05740), which later methods share."""


def min_max(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of min-max ranges: from the smallest to the largest value."""
    return Recipe(
        method="min-max",
        weights=QuantSpec(weight_bits, range="min-max"),
        activations=QuantSpec(activation_bits, range="min-max"),
    )


def percentile(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of percentile ranges: 99.99 % of the activations on each side; min-max for weights."""
    return Recipe(
        method="percentile",
        weights=QuantSpec(weight_bits, range="min-max"),
        activations=QuantSpec(activation_bits, range="percentile"),
    )


def mse(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of MSE ranges, which minimize |x - Q(x)|^2.4, as QDrop (arXiv 2203.05740) and PTQ4SAM do."""
    return Recipe(
        method="mse",
        weights=QuantSpec(weight_bits, range="mse"),
        activations=QuantSpec(activation_bits, range="mse"),
    )


def brecq(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of BRECQ (arXiv 2102.05426): rounding learned by block reconstruction; ranges of `mse`."""
    learned = Reconstruction(unit="block", loss="output", target="float", scales=False, drop=1.0)
    return replace(mse(weight_bits, activation_bits), method="brecq", reconstruction=learned)


def qdrop(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of QDrop (arXiv 2203.05740): rounding and activation scales learned with random dropping."""
    return replace(mse(weight_bits, activation_bits), method="qdrop", reconstruction=QDROP)


def repq_vit(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of RepQ-ViT (arXiv 2212.08254): normalized activations per channel, and log-sqrt(2) softmax.

    The channel factors and offsets are folded into the normalizations, which leaves one scale per tensor. The paper's
    change of the base to 2 concerns kernels and no value, so probabilities keep two steps per octave.
    """
    return replace(
        mse(weight_bits, activation_bits),
        method="repq-vit",
        equalized=True,
        equalization=Equalization(layers="normalizations"),
        probabilities=ProbabilitySpec("log", finest=2, coarsest=2),
    )


def adalog(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of AdaLog (arXiv 2407.12951): logarithmic codes of adaptive base after softmax and GELU.

    Deviation: bases of the softmax are 2**(1 / tau) with tau a power of 2, as in `ptq4sam_s`.
    """
    granularity = ProbabilitySpec("log", finest=finest_granularity(activation_bits))
    return replace(mse(weight_bits, activation_bits), method="adalog", probabilities=granularity, gelu="log")


def gptq(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of GPTQ (arXiv 2210.17323): weights rounded with compensation; ranges of `mse`."""
    compensation = Compensation(inputs=False)
    return replace(mse(weight_bits, activation_bits), method="gptq", compensation=compensation)


def erq(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of ERQ (arXiv 2407.06794): `repq_vit`, and weights that make up for both kinds of error.

    Deviation: GPTQ's order takes the place of the paper's rounding refinement.
    """
    return replace(repq_vit(weight_bits, activation_bits), method="erq", compensation=Compensation())


def ptq4sam_s(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of PTQ4SAM without reconstruction: bimodal integration and adaptive granularity.

    The paper (arXiv 2405.03144) tries 1, 2 and 4 steps per octave.
    """
    start = mse(weight_bits, activation_bits)
    granularity = ProbabilitySpec("log", finest=finest_granularity(activation_bits))
    return replace(start, method="ptq4sam-s", bimodal=True, probabilities=granularity)


def finest_granularity(activation_bits: int) -> int:
    """Return the most steps per octave to try for probabilities.

    With more than 4 bits, most codes of the paper's 4 steps would stand for negligible probabilities. The finest grid
    covers four octaves.
    """
    return min(32, max(4, 1 << (activation_bits - 2)))


def ptq4sam(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of PTQ4SAM (arXiv 2405.03144): `ptq4sam_s`, then QDrop's reconstruction."""
    return replace(ptq4sam_s(weight_bits, activation_bits), method="ptq4sam", reconstruction=QDROP)


def ahcptq_s(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of AHCPTQ without reconstruction: hybrid codes after a GELU, and four groups of channels.

    Assumption: the rest is that of `ptq4sam_s`, bimodal integration and adaptive granularity.
    """
    return replace(
        ptq4sam_s(weight_bits, activation_bits),
        method="ahcptq-s",
        equalized=True,
        equalization=Equalization(layers="normalizations", groups=4),
        gelu="hybrid",
    )


def ahcptq(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of AHCPTQ (arXiv 2503.03088): `ahcptq_s`, then QDrop's reconstruction."""
    return replace(ahcptq_s(weight_bits, activation_bits), method="ahcptq", reconstruction=QDROP)


def car_sam_s(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of CAR-SAM without reconstruction: `ptq4sam_s`, and projections that make up for products.

    Assumption: everything but the compensation is that of `ptq4sam_s`.
    """
    compensation = Compensation(layers="decoder", rounding=False, queries=True)
    return replace(ptq4sam_s(weight_bits, activation_bits), method="car-sam-s", compensation=compensation)


def car_sam(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of CAR-SAM (arXiv 2605.16901): `car_sam_s`, then QDrop's reconstruction.

    A decoder layer is one unit, so that both of its cross-attentions are learned jointly, as in the paper.
    """
    return replace(car_sam_s(weight_bits, activation_bits), method="car-sam", reconstruction=QDROP)


def saq_sam_s(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of SAQ-SAM without reconstruction: `ptq4sam_s` and perceptual-consistency clipping."""
    return replace(ptq4sam_s(weight_bits, activation_bits), method="saq-sam-s", clipping=Clipping())


def saq_sam(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of SAQ-SAM (arXiv 2503.06515): clipping, then prompt-aware reconstruction."""
    learned = Reconstruction(unit="stage", loss="prompt", target="float", scales=True, drop=0.5)
    return replace(saq_sam_s(weight_bits, activation_bits), method="saq-sam", reconstruction=learned)


def saq_sam_plus(weight_bits: int, activation_bits: int) -> Recipe:
    """Return the recipe of SAQ-SAM with additions of this project, which cost little or no time at inference.

    The additions: equalized channels; balanced heads of the decoder's attentions; per-channel input scales where the
    decoder reads a residual stream; row-scaled probabilities; dynamic queries and keys in image-to-token attention;
    image tokens rounded without their positions; clipping by the attention's output error; weights that compensate for
    quantization errors in closed form. Learning is prompt-aware throughout: the decoder is learned as a
    whole, by its masks, with its biases and normalizations. After compensation, learning single units first is no gain.
    """
    start = saq_sam(weight_bits, activation_bits)
    assert start.reconstruction is not None
    return replace(
        start,
        method="saq-sam-plus",
        equalized=True,
        balanced_heads=True,
        input_scales=True,
        probabilities=replace(start.probabilities, scale="row"),
        dynamic_queries=True,
        separate_positions=True,
        clipping=Clipping(images=4, include_range=True, measure="output"),
        compensation=Compensation(),
        reconstruction=replace(
            start.reconstruction, affine=True, encoder_steps=0, decoder_steps=0, joint_steps=4
        ),
    )


def weight_only(weight_bits: int, group_size: int | None = None) -> Recipe:
    """Return the recipe of weight-only round-to-nearest quantization, which needs no calibration.

    Args:
        weight_bits: 2 to 8.
        group_size: Consecutive inputs of an output channel that share a scale, one of `GROUP_SIZES`; None for the
            whole channel.
    """
    return Recipe(
        method=WEIGHT_ONLY,
        weights=QuantSpec(weight_bits, range="mse", group_size=group_size),
        activations=None,
    )


METHODS: dict[str, Callable[[int, int], Recipe]] = {
    "min-max": min_max,
    "percentile": percentile,
    "mse": mse,
    "brecq": brecq,
    "qdrop": qdrop,
    "repq-vit": repq_vit,
    "adalog": adalog,
    "gptq": gptq,
    "erq": erq,
    "ptq4sam-s": ptq4sam_s,
    "ptq4sam": ptq4sam,
    "ahcptq-s": ahcptq_s,
    "ahcptq": ahcptq,
    "car-sam-s": car_sam_s,
    "car-sam": car_sam,
    "saq-sam-s": saq_sam_s,
    "saq-sam": saq_sam,
    "saq-sam-plus": saq_sam_plus,
}
"""The function of each method that quantizes activations."""
