"""The interface of a SAM family: everything that saqsam needs to know about one kind of Segment Anything Model.

Module names, classes and shapes of a family appear in its own folder and nowhere else; the rest of the package asks a
`ModelFamily` and the `ModelStructure` that it returns for a configuration. The guide *Add a model family* explains how
to add one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from saqsam.models.format import ModelFormat
from saqsam.models.structure import InputSpec, ModelStructure

State = tuple[Tensor, ...]
"""Activations of B images between two encoder blocks: hidden states [B, h, w, C], then outputs of earlier blocks that
the neck reads."""


@dataclass(frozen=True)
class Features:
    """Output of an image encoder for B images.

    Attributes:
        embedding: Image embedding [B, C, h, w].
        extras: Further feature maps that the family's mask head reads; empty for SAM v1.
    """

    embedding: Tensor
    extras: tuple[Tensor, ...] = ()

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The embedding and the further feature maps, in this order."""
        return self.embedding, *self.extras

    def split(self) -> list[Features]:
        """Return the features of each image, as views with B = 1."""
        return [
            Features(first, tuple(rest))
            for first, *rest in zip(*(torch.split(one, 1) for one in self.maps), strict=True)
        ]

    @classmethod
    def join(cls, several: Sequence[Features]) -> Features:
        """Return the features of several images, in order, as one batch."""
        first, *rest = (torch.cat(maps) for maps in zip(*(one.maps for one in several), strict=True))
        return cls(first, tuple(rest))


class DecoderAttention(Protocol):
    """A decoder attention with quantizer slots, as `ModelFamily.quantizable_attention` returns it.

    Attributes:
        scaling: Factor of the logits.
    """

    scaling: float

    @property
    def input_projections(self) -> tuple[Any, Any, Any]:
        """Layers that compute queries, keys and values."""
        ...

    @property
    def output_projection(self) -> Any:
        """Layer that reads the attended values."""
        ...

    def split_heads(self, projected: Tensor) -> Tensor:
        """Split projected values [B, P, T, C] into heads [B * P, N, T, C / N]."""
        ...


class StabilityRule(NamedTuple):
    """When a single mask is replaced by the best of the others: where its stability is below the threshold.

    Attributes:
        delta: The stability is the IoU of the masks at the thresholds `delta` and `-delta`.
        threshold: Least stability.
    """

    delta: float
    threshold: float


class AttentionMacs(NamedTuple):
    """Multiply-accumulate operations (MACs) of one call of an attention.

    Attributes:
        logits: MACs of queries times keys; probabilities times values take as many.
        relative_positions: MACs of queries times relative positions.
    """

    logits: int
    relative_positions: int = 0


class ModelFamily(ABC):
    """One kind of Segment Anything Model.

    The forward pass is cut where units of reconstruction begin and end. Prompts are the batch of the decoder. No
    method switches gradients off. Axes: B images, P prompts, T tokens of a prompt, M masks of a prompt, C channels,
    S pixels of an input side, h and w the embedding grid.

    Attributes:
        name: Identifier, such as `sam`.
        label: Display name.
        format: How its models are stored.
        mask_token: Index of the single mask's token among the tokens of a prompt.
        coordinate_encoding: Class of the module that encodes coordinates by a matrix. A bfloat16 model runs it in
            float32.
        float32_modules: Classes of modules whose tensors stay float32 in a bfloat16 model.
    """

    name: str
    label: str
    format: ModelFormat
    mask_token: int
    coordinate_encoding: type[nn.Module]
    float32_modules: tuple[type[nn.Module], ...] = ()

    @abstractmethod
    def build(self, config: Any) -> Any:
        """Return an untrained model of a configuration, on the current default device."""

    @abstractmethod
    def structure(self, config: Any) -> ModelStructure:
        """Return the structure of the models of a configuration."""

    @abstractmethod
    def input_spec(self, config: Any) -> InputSpec:
        """Return the sizes of inputs and outputs of the models of a configuration."""

    @abstractmethod
    def encoder(self, model: Any) -> nn.Module:
        """Return the image encoder of a model."""

    @abstractmethod
    def encoder_fields(self, config_fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the fields of a configuration that affect an image embedding.

        Args:
            config_fields: All fields that affect a mask, from `models.configuration.config_fields`.
        """

    def simplify(self, model: Any) -> None:  # noqa: B027
        """Rewrite a float model in place so that it computes the same with fewer operations; by default, do nothing.

        A family whose model in transformers departs from the official code is corrected here, too. The method is called
        before a model is quantized, and on the empty model that a packed checkpoint is loaded into. A model that is
        simplified already stays as it is.
        """

    def stability_rule(self, config: Any) -> StabilityRule | None:
        """Return when `select_masks` replaces a single mask by the best of the others; None if never."""
        return None

    def plain_tensors(self, config: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the state dict of the model that `build` makes from that of a simplified one."""
        return tensors

    @abstractmethod
    def tie(self, model: Any) -> None:
        """Tie the tensors of `ModelStructure.tied` again, in place, after tensors were assigned."""

    @abstractmethod
    def quantizable_attention(
        self, attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
    ) -> nn.Module:
        """Return an attention with empty quantizer slots that shares the layers of a transformers attention.

        Args:
            attention: A module named in `ModelStructure.attentions`.
            quantized_rel_pos_query: Compute relative positions from the quantized query.
            row_scaled: Quantize the numerators of the softmax and divide by their sum afterwards.
        """

    @abstractmethod
    def embed_patches(self, model: Any, pixel_values: Tensor) -> State:
        """Return the input ([B, h, w, C],) of the first encoder block for pixel values [B, 3, S, S]."""

    @abstractmethod
    def run_blocks(self, model: Any, blocks: Iterable[int], state: State) -> State:
        """Run encoder blocks by index, one after another."""

    @abstractmethod
    def run_neck(self, model: Any, state: State) -> Features:
        """Return the features of the state after the last block."""

    def encode(self, model: Any, pixel_values: Tensor) -> Features:
        """Return the features of pixel values [B, 3, S, S]."""
        blocks = range(len(self.structure(model.config).blocks))
        return self.run_neck(model, self.run_blocks(model, blocks, self.embed_patches(model, pixel_values)))

    @abstractmethod
    def decode(
        self,
        model: Any,
        features: Features,
        *,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        mask_inputs: Tensor | None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Predict the masks of P prompts in one image. Coordinates are pixels of the S x S input.

        Args:
            model: The model.
            features: Of one image.
            points: [P, N, 2] as x, y.
            labels: [P, N], 1 for foreground and 0 for background.
            boxes: [P, 4] xyxy.
            mask_inputs: Logits [P, 4h, 4w].
            multimask_output: Return three masks for each prompt instead of one.

        Returns:
            Logits [P, M, 4h, 4w] and predicted IoUs [P, M].
        """

    def select_masks(
        self, config: Any, logits: Tensor, ious: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """Select masks of P prompts from those of `run_mask_head`, as `decode` does.

        Args:
            config: Configuration of the model.
            logits: [P, M, 4h, 4w], the single mask first.
            ious: Predicted IoUs [P, M].
            multimask_output: Return all masks but the single one instead of the single one.

        Returns:
            Logits [P, C, 4h, 4w] and predicted IoUs [P, C].
        """
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return logits[:, chosen], ious[:, chosen]

    @abstractmethod
    def share_image(self, model: Any) -> None:
        """Let the decoder of a packed model project the image tokens of its first layer once for all prompts."""

    @abstractmethod
    def embed_boxes(self, model: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's inputs for box prompts.

        Args:
            model: The model.
            boxes: [P, 4] xyxy in pixels of the S x S input.

        Returns:
            Tokens [P, 1, T, C] (output tokens, then the box) and the dense "no mask" embedding [1, C, h, w].
        """

    @abstractmethod
    def image_positions(self, model: Any) -> Tensor:
        """Return the positional embedding of the image tokens, [1, 1, h * w, C]."""

    @abstractmethod
    def decoder_depth(self, model: Any) -> int:
        """Return the number of two-way layers of the decoder."""

    @abstractmethod
    def run_decoder_layer(
        self, model: Any, index: int, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run one two-way layer of the decoder.

        Args:
            model: The model.
            index: Index of the layer.
            tokens: [P, 1, T, C] of the previous layer; `prompt` for the first.
            image: Image tokens [P or 1, 1, h * w, C] of the previous layer; embedding plus dense embedding for the
                first.
            prompt: [P, 1, T, C] of `embed_boxes`.
            positions: [1, 1, h * w, C].

        Returns:
            Tokens [P, 1, T, C] and image tokens [P, 1, h * w, C].
        """

    @abstractmethod
    def run_final_attention(
        self, model: Any, tokens: Tensor, image: Tensor, prompt: Tensor, positions: Tensor
    ) -> Tensor:
        """Return the output [P, 1, T, C] of the final attention of tokens to the image, before residual and norm."""

    @abstractmethod
    def finish_tokens(self, model: Any, tokens: Tensor, attended: Tensor) -> Tensor:
        """Add the final attention's output to the tokens and normalize them: [P, 1, T, C]."""

    @abstractmethod
    def run_mask_head(
        self, model: Any, tokens: Tensor, image: Tensor, extras: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Predict all masks from the transformer's output.

        Args:
            model: The model.
            tokens: [P, 1, T, C] of `finish_tokens`.
            image: Image tokens [P, 1, h * w, C] of the last layer.
            extras: `Features.extras`.

        Returns:
            Logits [P, M, 4h, 4w] of all masks, the single one first, and predicted IoUs [P, M].
        """

    def run_transformer(
        self,
        model: Any,
        first: int,
        tokens: Tensor,
        image: Tensor,
        prompt: Tensor,
        positions: Tensor,
        *,
        with_final: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder's layers from `first` on, and the final attention if `with_final` is set.

        Args:
            model: The model.
            first: Index of the first layer to run.
            tokens: [P, 1, T, C], input of that layer.
            image: Image tokens [P or 1, 1, h * w, C], input of that layer.
            prompt: [P, 1, T, C] of `embed_boxes`.
            positions: [1, 1, h * w, C].
            with_final: Run the final attention and its normalization, too.

        Returns:
            Tokens [P, 1, T, C] and image tokens [P, 1, h * w, C].
        """
        for index in range(first, self.decoder_depth(model)):
            tokens, image = self.run_decoder_layer(model, index, tokens, image, prompt, positions)
        if with_final:
            attended = self.run_final_attention(model, tokens, image, prompt, positions)
            tokens = self.finish_tokens(model, tokens, attended)
        return tokens, image

    @abstractmethod
    def attention_macs(self, attention: nn.Module, inputs: Mapping[str, Any]) -> AttentionMacs:
        """Count the MACs of one call of a float attention, given its arguments by name."""

    @abstractmethod
    def mask_macs(self, config: Any, prompts: int) -> int:
        """Count the MACs of the hypernetworks' output times the upscaled embedding, for P prompts."""

    @abstractmethod
    def module_label(self, name: str) -> str:
        """Return the display name of a module, such as `encoder block 3, attn.qkv`; an unknown name is unchanged."""

    @abstractmethod
    def slot_label(self, slot: str) -> str:
        """Return the display name of an activation slot, such as `decoder layer 1, token-to-image attention: keys`."""


def flatten_image(image: Tensor) -> Tensor:
    """Turn a map [B, C, h, w] into image tokens [B, 1, h * w, C]."""
    return image.flatten(2).transpose(1, 2)[:, None]


def unflatten_image(tokens: Tensor) -> Tensor:
    """Turn the image tokens [B, 1, h * w, C] of a square map into the map [B, C, h, w]."""
    side = math.isqrt(tokens.shape[2])
    image = tokens[:, 0].transpose(1, 2)
    return image.reshape(*image.shape[:2], side, side)
