"""The interface of a SAM family: everything saqsam has to know about one kind of Segment Anything Model.

Module names, classes and shapes of a family appear in its own folder and nowhere else; the rest of the package asks a
`ModelFamily` and the `ModelStructure` that it returns for a configuration. `docs` describe how to add a family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from saqsam.models.parts import DECODER_PARTS

PROBABILITIES = "probability_quantizer"
"""Slot of an attention's probabilities."""
SLOTS = ("query_quantizer", "key_quantizer", "value_quantizer", PROBABILITIES)
"""Slots of an attention with quantizable products."""


@dataclass(frozen=True)
class Features:
    """Output of an image encoder for B images.

    Attributes:
        embedding: Image embedding [B, C, h, w].
        extras: Further maps that a family's mask head reads; empty for SAM v1.
    """

    embedding: Tensor
    extras: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Site:
    """A module of the model and the part it belongs to."""

    name: str
    part: str


@dataclass(frozen=True)
class AttentionSite(Site):
    """An attention whose products are quantized, with the names of its linear layers.

    Attributes:
        query: Layer that computes the queries.
        key: Layer that computes the keys.
        value: Layer that computes the values.
        output: Layer that reads the attended values.
    """

    query: str
    key: str
    value: str
    output: str

    @property
    def is_fused(self) -> bool:
        """Whether one layer computes queries, keys and values, in this order."""
        return self.query == self.key == self.value

    @property
    def is_decoder(self) -> bool:
        """Whether the attention belongs to the mask decoder."""
        return self.part in DECODER_PARTS


@dataclass(frozen=True)
class NormalizedLayer:
    """A layer that reads a normalization and nothing else, so that channel factors can move between the two.

    Attributes:
        norm: Name of the normalization.
        layer: Name of the linear layer or convolution.
        shifts: Whether offsets can move too: False where zero padding lies between the two.
    """

    norm: str
    layer: str
    shifts: bool = True


@dataclass(frozen=True)
class ReluMlp:
    """Two linear layers with a ReLU between them, through which positive factors pass.

    Attributes:
        first: Name of the layer before the ReLU.
        second: Name of the layer after it.
    """

    first: str
    second: str


@dataclass(frozen=True)
class ModelStructure:
    """Names of a model's modules by role. It holds no reference to a model.

    Attributes:
        layers: Linear layers and convolutions of the papers' tensor set, in the order of computation.
        float_layers: Layers that the papers leave in floating point.
        attentions: Attentions whose products are quantized, encoder first.
        residual_readers: Decoder layers whose input is a residual stream, alone or with positions.
        blocks: Encoder blocks in the order of computation.
        stages: Ranges of `blocks`. A stage ends with a global-attention block; blocks after the last one form a stage.
        neck: Module between the last block and the image embedding.
        decoder: Two-way transformer.
        decoder_layers: Its layers in the order of computation.
        final_attention: Its final attention of tokens to the image.
        patch_embedding: Convolution that embeds patches.
        position_embedding: Parameter with the absolute positions; the model may have none.
        normalized_layers: Layers of the encoder that can be equalized with the normalization they read.
        relu_mlps: MLPs that can be equalized across their ReLU.
        tied: Name of each tensor that shares its storage with another one, and the name of that other one.
    """

    layers: tuple[Site, ...]
    float_layers: tuple[Site, ...]
    attentions: tuple[AttentionSite, ...]
    residual_readers: tuple[str, ...]
    blocks: tuple[str, ...]
    stages: tuple[range, ...]
    neck: str
    decoder: str
    decoder_layers: tuple[str, ...]
    final_attention: str
    patch_embedding: str
    position_embedding: str
    normalized_layers: tuple[NormalizedLayer, ...]
    relu_mlps: tuple[ReluMlp, ...]
    tied: Mapping[str, str]

    @property
    def weighted_sites(self) -> tuple[Site, ...]:
        """Every layer with weights that can be quantized, whether the papers quantize them or not."""
        return self.layers + self.float_layers

    @property
    def decoder_attentions(self) -> tuple[AttentionSite, ...]:
        """Attentions of the mask decoder, in the order of computation."""
        return tuple(site for site in self.attentions if site.is_decoder)

    def is_encoder(self, module: str) -> bool:
        """Return whether a module belongs to the image encoder, by its name."""
        encoder = self.neck.partition(".")[0]
        return module == encoder or module.startswith(f"{encoder}.")

    def check(self, model: nn.Module) -> None:
        """Raise ValueError if the model lacks one of the modules."""
        names = {name for name, _ in model.named_modules()}
        for site in (*self.weighted_sites, *self.attentions):
            if site.name not in names:
                raise ValueError(
                    f"this {type(model).__name__} has no module {site.name}: expected a SAM of transformers"
                )


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


class AttentionProducts(NamedTuple):
    """Multiply-accumulates of one call of an attention.

    Attributes:
        product: Of queries and keys; probabilities and values take as many.
        relative_positions: Of queries and relative positions.
    """

    product: int
    relative_positions: int = 0


@dataclass(frozen=True)
class InputSpec:
    """Sizes of a model's inputs and outputs.

    Attributes:
        channels: Channels of the image.
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels.
        embedding_channels: Channels C of the image embedding.
        masks: Masks that the decoder predicts for a prompt, the single one included.
    """

    channels: int
    image_size: int
    patch_size: int
    embedding_channels: int
    masks: int

    @property
    def grid(self) -> int:
        """Side of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks."""
        return 4 * self.grid

    @property
    def pixels(self) -> tuple[int, int, int, int]:
        """Shape of the pixel values of one image."""
        return (1, self.channels, self.image_size, self.image_size)

    @property
    def embedding(self) -> tuple[int, int, int, int]:
        """Shape of the embedding of one image."""
        return (1, self.embedding_channels, self.grid, self.grid)


class ModelFamily(ABC):
    """One kind of Segment Anything Model.

    The forward pass is cut where units of reconstruction begin and end. Prompts are the batch of the decoder. No
    method switches gradients off. Axes: B images, P prompts, T tokens of a prompt, M masks of a prompt, C channels,
    S pixels of an input side, h and w the embedding grid.

    Attributes:
        name: Identifier, such as `sam`.
        label: Display name.
        model_types: Values of `model_type` in a configuration that belong to the family.
        mask_token: Index of the single mask's token among the tokens of a prompt.
    """

    name: str
    label: str
    model_types: tuple[str, ...]
    mask_token: int

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
        """Return the fields of a configuration that decide an image embedding.

        Args:
            config_fields: All fields that decide a mask, see `models.configuration.config_fields`.
        """

    @abstractmethod
    def tie(self, model: Any) -> None:
        """Tie the tensors of `ModelStructure.tied` again, in place, after tensors were assigned."""

    @abstractmethod
    def quantizable_attention(
        self, attention: nn.Module, *, quantized_rel_pos_query: bool, row_scaled: bool
    ) -> nn.Module:
        """Return an attention with empty quantizer slots that shares the layers of one of transformers.

        Args:
            attention: A module named in `ModelStructure.attentions`.
            quantized_rel_pos_query: Compute relative positions from the quantized query.
            row_scaled: Quantize the numerators of the softmax and divide by their sum afterwards.
        """

    @abstractmethod
    def embed_patches(self, model: Any, pixel_values: Tensor) -> Tensor:
        """Return the input [B, h, w, C] of the first encoder block for pixel values [B, 3, S, S]."""

    @abstractmethod
    def run_blocks(self, model: Any, blocks: Iterable[int], hidden: Tensor) -> Tensor:
        """Run encoder blocks, given by index, one after another: [B, h, w, C] to the same shape."""

    @abstractmethod
    def run_neck(self, model: Any, hidden: Tensor) -> Features:
        """Return the features of the last block's output [B, h, w, C]."""

    @abstractmethod
    def encode(self, model: Any, pixel_values: Tensor) -> Features:
        """Return the features of pixel values [B, 3, S, S]."""

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
            labels: [P, N], 1 on the object and 0 beside it.
            boxes: [P, 4] xyxy.
            mask_inputs: Logits [P, 4h, 4w].
            multimask_output: Return three masks for each prompt instead of one.

        Returns:
            Logits [P, M, 4h, 4w] and predicted IoUs [P, M].
        """

    @abstractmethod
    def embed_boxes(self, model: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's inputs for box prompts.

        Args:
            model: The model.
            boxes: [P, 4] xyxy in pixels of the S x S input.

        Returns:
            Tokens [P, 1, T, C] (output tokens, then the box) and the dense embedding [1, C, h, w] of no mask.
        """

    @abstractmethod
    def image_positions(self, model: Any) -> Tensor:
        """Return the positional embedding of the image tokens, [1, 1, h * w, C]."""

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
        """Run the decoder's layers from `first` on and, if wanted, the final attention.

        Arguments are those of `run_decoder_layer`.

        Returns:
            Tokens [P, 1, T, C] and image tokens [P, 1, h * w, C].
        """
        for index in range(first, len(self.structure(model.config).decoder_layers)):
            tokens, image = self.run_decoder_layer(model, index, tokens, image, prompt, positions)
        if with_final:
            attended = self.run_final_attention(model, tokens, image, prompt, positions)
            tokens = self.finish_tokens(model, tokens, attended)
        return tokens, image

    @abstractmethod
    def attention_products(self, attention: nn.Module, inputs: Mapping[str, Any]) -> AttentionProducts:
        """Count the multiply-accumulates of one call of a float attention from its keyword arguments."""

    @abstractmethod
    def mask_product(self, config: Any, prompts: int) -> int:
        """Count the multiply-accumulates that make masks of the hypernetworks' output for P prompts."""

    @abstractmethod
    def module_label(self, name: str) -> str:
        """Return the display name of a module, such as `encoder block 3, attn.qkv`; unknown names are returned."""

    @abstractmethod
    def slot_label(self, slot: str) -> str:
        """Return the display name of an activation slot, such as `decoder layer 1, tokens to image: keys`."""


def flatten_image(image: Tensor) -> Tensor:
    """Turn a map [B, C, h, w] into image tokens [B, 1, h * w, C]."""
    return image.flatten(2).transpose(1, 2)[:, None]


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the module called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
