"""The structure of a SAM: names of its modules by role, and the sizes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from saqsam.models.parts import DECODER_PARTS, IMAGE_TO_TOKEN, TOKEN_TO_IMAGE_PARTS

PROBABILITIES = "probability_quantizer"
"""Slot of an attention's probabilities."""
LOGIT_OPERANDS = ("query_quantizer", "key_quantizer")
"""Slots of an attention's queries and keys, whose products are the logits."""
SLOTS = (*LOGIT_OPERANDS, "value_quantizer", PROBABILITIES)
"""Slots of an attention with quantizable operands."""


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
        is_rotary: Whether queries and keys are rotated by their positions before they are multiplied. Channel factors
            and offsets cannot be moved between them then.
    """

    query: str
    key: str
    value: str
    output: str
    is_rotary: bool = False

    @property
    def is_fused(self) -> bool:
        """True if one layer computes queries, keys and values, in this order."""
        return self.query == self.key == self.value

    @property
    def is_decoder(self) -> bool:
        """True if the attention belongs to the mask decoder."""
        return self.part in DECODER_PARTS


@dataclass(frozen=True)
class NormalizedLayer:
    """Layers that read a normalization and nothing else does, so that channel factors can be moved between them.

    Attributes:
        norm: Name of the normalization.
        layers: Names of the linear layers or convolutions.
        shifts: Whether offsets can be moved, too: False if zero padding lies between the two.
    """

    norm: str
    layers: tuple[str, ...]
    shifts: bool = True


@dataclass(frozen=True)
class ReluMlp:
    """Two linear layers with a ReLU between them, which commutes with positive channel factors.

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
        float_layers: Layers that the papers keep in floating point, and that a recipe may quantize.
        attentions: Attentions whose products are quantized, encoder first.
        residual_readers: Decoder layers whose input is a residual stream, alone or with positions.
        blocks: Encoder blocks in the order of computation.
        stages: Ranges of `blocks`. A stage ends with a global-attention block; blocks after the last one form a stage.
        skip_targets: For each block, the block that layer skipping continues with after it; the number of blocks if
            that is the neck.
        neck: Module between the last block and the image embedding.
        decoder: Two-way transformer.
        decoder_layers: Its layers in the order of computation.
        final_attention: Its final attention of tokens to the image.
        position_embedding: Parameter with the absolute positions, [1, h, w, C]; None if the family has no such tensor.
            The model may have none, too.
        normalized_layers: Layers of the encoder that can be equalized with the normalization they read.
        relu_mlps: MLPs that can be equalized across their ReLU.
        tied: Name of each tensor that shares its storage with another one, and the name of that other one.
        encoding_layers: Layers of the mask decoder that run when an image is encoded.
        unquantized: Layers and parameters that no recipe quantizes, with the part that inventories count them under.
    """

    layers: tuple[Site, ...]
    float_layers: tuple[Site, ...]
    attentions: tuple[AttentionSite, ...]
    residual_readers: tuple[str, ...]
    blocks: tuple[str, ...]
    stages: tuple[range, ...]
    skip_targets: tuple[int, ...]
    neck: str
    decoder: str
    decoder_layers: tuple[str, ...]
    final_attention: str
    position_embedding: str | None
    normalized_layers: tuple[NormalizedLayer, ...]
    relu_mlps: tuple[ReluMlp, ...]
    tied: Mapping[str, str]
    encoding_layers: tuple[str, ...] = ()
    unquantized: tuple[Site, ...] = ()

    @property
    def weighted_sites(self) -> tuple[Site, ...]:
        """Every layer with weights that can be quantized, whether the papers quantize them or not."""
        return self.layers + self.float_layers

    @property
    def decoder_attentions(self) -> tuple[AttentionSite, ...]:
        """Attentions of the mask decoder, in the order of computation."""
        return tuple(site for site in self.attentions if site.is_decoder)

    @property
    def position_readers(self) -> tuple[str, ...]:
        """Layers of the decoder that read image tokens plus their positions, in the order of computation."""
        queries = {site.query for site in self.attentions if site.part == IMAGE_TO_TOKEN}
        keys = {site.key for site in self.attentions if site.part in TOKEN_TO_IMAGE_PARTS}
        return tuple(layer.name for layer in self.layers if layer.name in queries | keys)

    def is_encoder(self, module: str) -> bool:
        """Return whether a module runs when an image is encoded, by its name."""
        encoder = self.neck.partition(".")[0]
        return module == encoder or module.startswith(f"{encoder}.") or module in self.encoding_layers

    def check(self, model: nn.Module) -> None:
        """Raise ValueError if the model lacks one of the modules."""
        names = {name for name, _ in model.named_modules()}
        for site in (*self.weighted_sites, *self.attentions):
            if site.name not in names:
                raise ValueError(
                    f"this {type(model).__name__} has no module {site.name}: expected a SAM of transformers"
                )


_LARGE_INPUT = 512
"""Side in pixels."""


@dataclass(frozen=True)
class InputSpec:
    """Sizes of a model's inputs and outputs.

    Attributes:
        channels: Channels of the image.
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels.
        embedding_channels: Channels C of the image embedding.
        masks: Masks that the decoder predicts for a prompt, the single one included.
        extras: Shape [1, C, h, w] of each further feature map by its name in exports, in the order of
            `Features.extras`.
        pads_boxes: Whether an exported decoder gets a padding point after the corners of a box; it always gets one
            after points alone.
    """

    channels: int
    image_size: int
    patch_size: int
    embedding_channels: int
    masks: int
    extras: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pads_boxes: bool = False

    @property
    def grid(self) -> int:
        """Side of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def is_large(self) -> bool:
        """Whether an image takes so long that defaults should be a few images."""
        return self.image_size > _LARGE_INPUT

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks."""
        return 4 * self.grid

    @property
    def pixels(self) -> tuple[int, int, int, int]:
        """Shape of the pixel values of one image."""
        return (1, self.channels, self.image_size, self.image_size)

    @property
    def features(self) -> Mapping[str, tuple[int, ...]]:
        """Shape [1, C, h, w] of each feature map of an image by its name in exports, the embedding first."""
        return {"image_embeddings": self.embedding, **self.extras}

    @property
    def embedding(self) -> tuple[int, int, int, int]:
        """Shape of the embedding of one image."""
        return (1, self.embedding_channels, self.grid, self.grid)


def ranges_ending_at(ends: Iterable[int], count: int) -> tuple[range, ...]:
    """Cut the indexes from 0 to `count` - 1 into ranges.

    Args:
        ends: Last index of each range but the last; indexes outside of the sequence are ignored, as by models.
        count: Number of indexes, at least 1.
    """
    ordered = sorted({*(end for end in ends if 0 <= end < count), count - 1})
    begins = [0, *(end + 1 for end in ordered[:-1])]
    return tuple(range(begin, end + 1) for begin, end in zip(begins, ordered, strict=True))


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the module called `name` by `new`, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
