"""Names and attention of the two-way mask decoder, which the families share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saqsam.models.average import RowScaledAverage, SoftmaxAverage
from saqsam.models.parts import DECODER_PARTS
from saqsam.models.structure import AttentionSite, Site


class TwoWayNames(NamedTuple):
    """Names of the layers of a two-way transformer that differ between families.

    Attributes:
        mlp: Names of the two layers of an MLP.
        activation: Name of an MLP's activation.
        output: Name of an attention's output projection.
    """

    mlp: tuple[str, str]
    activation: str
    output: str


SAM_NAMES = TwoWayNames(("lin1", "lin2"), "act", "out_proj")
"""Names in SAM v1, and in the families that reuse its decoder."""
SAM2_NAMES = TwoWayNames(("proj_in", "proj_out"), "activation", "o_proj")
"""Names in SAM 2 and SAM 3's tracker."""


def two_way_attentions(transformer: str, layers: Sequence[str], names: TwoWayNames) -> list[AttentionSite]:
    """Return the attentions of a two-way transformer in the order of computation.

    Args:
        transformer: Name of the transformer.
        layers: Names of its layers.
        names: Names within a layer.
    """
    parts = {
        "self_attn": "decoder.self_attention",
        "cross_attn_token_to_image": "decoder.token_to_image",
        "cross_attn_image_to_token": "decoder.image_to_token",
    }
    sites = [(f"{layer}.{name}", part) for layer in layers for name, part in parts.items()]
    sites.append((f"{transformer}.final_attn_token_to_image", "decoder.final_attention"))
    return [
        AttentionSite(
            name, part, f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj", f"{name}.{names.output}"
        )
        for name, part in sites
    ]


def two_way_layers(attentions: Sequence[AttentionSite], names: TwoWayNames) -> Iterator[Site]:
    """Yield the linear layers of a two-way transformer in the order of computation.

    Args:
        attentions: Its attentions, from `two_way_attentions`.
        names: Names within a layer.
    """
    for attention in attentions:
        for layer in (attention.query, attention.key, attention.value, attention.output):
            yield Site(layer, attention.part)
        if attention.part == "decoder.token_to_image":
            block = attention.name.rpartition(".")[0]
            for name in names.mlp:
                yield Site(f"{block}.mlp.{name}", "decoder.mlp")


def residual_readers(layers: Iterable[Site], names: TwoWayNames) -> tuple[str, ...]:
    """Return the decoder layers that read a residual stream: all projections to heads, and the first layer of MLPs.

    Args:
        layers: Layers of the model.
        names: Names within a two-way layer.
    """
    readers = ("q_proj", "k_proj", "v_proj", names.mlp[0])
    return tuple(
        site.name for site in layers if site.part in DECODER_PARTS and site.name.rpartition(".")[2] in readers
    )


class TwoWayAttention(nn.Module):
    """Mixin for an attention of the two-way decoder with quantizer slots.

    The class that it is mixed into has the layers `q_proj`, `k_proj` and `v_proj`, the number of heads
    `num_attention_heads` and the factor of the logits, `scaling`.

    Attributes:
        average: Average of the values.
        output_name: Name of the output projection.
    """

    num_attention_heads: int
    scaling: float
    query_quantizer: nn.Module
    key_quantizer: nn.Module
    value_quantizer: nn.Module
    probability_quantizer: nn.Module
    average: SoftmaxAverage | RowScaledAverage
    output_name: str

    @property
    def input_projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Layers that compute queries, keys and values."""
        return self.q_proj, self.k_proj, self.v_proj  # type: ignore[return-value]

    @property
    def output_projection(self) -> nn.Module:
        """Layer that reads the attended values."""
        layer: nn.Module = getattr(self, self.output_name)
        return layer

    def split_heads(self, projected: Tensor) -> Tensor:
        """Split projected values [B, P, T, C] into heads [B * P, N, T, C / N]."""
        batch, prompts, tokens, channels = projected.shape
        heads = self.num_attention_heads
        return projected.reshape(batch * prompts, tokens, heads, channels // heads).transpose(1, 2)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_similarity: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Attend from query [B, P, Q, C] to key and value [B, P, K, C].

        Args:
            query: Query tokens.
            key: Key tokens.
            value: Value tokens.
            attention_similarity: Added to the logits, broadcast to [B * P, N, Q, K] (PerSAM, arXiv
                2305.03048).

        Returns:
            Output [B, P, Q, C] and probabilities [B * P, N, Q, K].
        """
        prompts, tokens = query.shape[1:3]
        query_layer, key_layer, value_layer = self.input_projections
        q = self.query_quantizer(self.split_heads(query_layer(query)))
        k = self.key_quantizer(self.split_heads(key_layer(key)))
        v = self.value_quantizer(self.split_heads(value_layer(value)))
        logits = (q @ k.transpose(2, 3)) * self.scaling
        if attention_similarity is not None:
            logits = logits + attention_similarity
        output, probabilities = self.average(logits, v, self.probability_quantizer)
        output = output.transpose(1, 2).reshape(-1, prompts, tokens, output.shape[1] * output.shape[3])
        return self.output_projection(output), probabilities


def share_image(
    transformer: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pass image tokens that are equal for all prompts to a two-way transformer once; a forward pre-hook.

    The first layer then projects the image once instead of once per prompt. Only prompts with mask inputs, or of
    several images, have image tokens of their own. Masks stay the same bit for bit.
    """
    image = options.get("image_embeddings")
    if (
        image is None
        or len(image) == 1
        or torch.is_grad_enabled()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch.compiler.is_compiling()
        or not image.is_cpu  # comparing values would wait for an accelerator
        or not isinstance(transformer.layers[0].cross_attn_token_to_image, TwoWayAttention)
        or not torch.equal(image, image[:1].expand_as(image))
    ):
        return None
    positions = options["image_positional_embeddings"]
    return arguments, {
        **options,
        "image_embeddings": image[:1],
        "image_positional_embeddings": positions[:1],
    }
