"""Layouts for clients: files, and the inputs and outputs of encoder and decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saqsam.export.onnx.graph import Graph, Value  # an extra
    from saqsam.models.structure import InputSpec

_HASH_DIGITS = 8
OWN_LAYOUT = "saqsam"
"""Name of saqsam's own layout, whose decoder is that of the official ONNX export."""


@dataclass(frozen=True)
class Context:
    """Properties of a model for the adapters of its inputs and outputs.

    Attributes:
        spec: Sizes of its inputs and outputs.
        mean: Mean of 8-bit pixels by channel, which the encoder's input has subtracted.
        std: Standard deviation of 8-bit pixels by channel, by which the encoder's input is divided.
    """

    spec: InputSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Input:
    """An input of a client.

    Attributes:
        name: Name in the file.
        feeds: Input of the own graph that it feeds; None for an input that the graph does not need, or only together
            with others.
        declare: Function that declares the input and returns the value to feed; None where both have the same shape and
            type.
    """

    name: str
    feeds: str | None
    declare: Callable[[Graph, Context, str], Value] | None = None


@dataclass(frozen=True)
class Output:
    """An output for a client.

    Attributes:
        name: Name in the file.
        reads: Output of the own graph that it is computed from.
        derive: Function that computes and declares the output; None where both have the same shape and type.
    """

    name: str
    reads: str
    derive: Callable[[Graph, Context, Value, str], None] | None = None


@dataclass(frozen=True)
class Part:
    """The encoder or the decoder in a layout.

    Attributes:
        file: File name; `{suffix}` stands for the layout's suffix of the weights' bits, `{label}` for that of the
            model.
        inputs: Inputs in the order of the file.
        outputs: Outputs in the order of the file.
        computed: Values of inputs of the own graph that no single input of the client feeds.
    """

    file: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    computed: Mapping[str, Callable[[Graph, Context], Value]] = field(default_factory=dict)


@dataclass(frozen=True)
class Contract:
    """Encoder and decoder that the clients of a layout expect, for the models of one family.

    Attributes:
        encoder: The encoder.
        decoder: The decoder.
        single_mask: Whether the decoder returns one mask per prompt, as the official export chooses it.
        free_batch: Whether the encoder takes any number of images per call.
        sizes: Values of `InputSpec` that are fixed in the source of a client.
        write_companions: Function that writes the files beside the graphs into a folder, from the description of the
            model and the names of the graphs' files by part; None if there are none.
    """

    encoder: Part
    decoder: Part
    single_mask: bool
    free_batch: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    write_companions: Callable[[Path, Description, Mapping[str, str]], None] | None = None


@dataclass(frozen=True)
class Description:
    """Description of a model for the files beside the graphs.

    Attributes:
        name: Name of the recipe, or `float`.
        checkpoint: Content hash of the checkpoint.
        config: Configuration of the model, as JSON types.
        processor: Settings of the processor, as `processor_fields` returns them.
        weight_bits: Bits of the weights; None for a float model.
    """

    name: str
    checkpoint: str
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    weight_bits: int | None

    @property
    def label(self) -> str:
        """A name for files and lists, different for every checkpoint: letters, digits, dots, dashes and underscores."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", f"saqsam-{self.name}-{self.checkpoint[:_HASH_DIGITS]}")


def no_suffix(weight_bits: int | None) -> str:
    """Return the suffix of layouts whose file names do not depend on the bits."""
    return ""


@dataclass(frozen=True)
class Layout:
    """Files for the clients of another project.

    Attributes:
        name: Name, a choice of `--layout`.
        clients: Clients that load the files, for help texts and messages.
        contracts: Contract by name of the model family.
        suffix: Function from the bits of the weights, None for float, to the suffix of the graphs' names.
    """

    name: str
    clients: str
    contracts: Mapping[str, Contract]
    suffix: Callable[[int | None], str] = no_suffix
