"""The interface of a family's files: configurations, tensor names, and preprocessing.

`ModelFamily` runs a model; its `ModelFormat` says how such models are stored, by transformers and by the official code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from torch import Tensor

Value = TypeVar("Value")
Canvas = Literal["pad", "stretch"]
"""Method that makes an image square: resize its longest side and pad, or stretch."""


class ModelFormat(ABC):
    """Files of a family: configurations, tensor names and preprocessing.

    Attributes:
        model_types: Values of `model_type` in a `config.json`.
        canvas: How an image becomes square.
        image_processor_class: Class of image processors; None for the default of the canvas.
        processor_class: transformers' class of processors, which takes an image processor.
        anchor: Name of a tensor that every model has, in transformers.
        official_anchor: Its name in the official code.
        roots: First components of the names of all tensors, in transformers.
        official_roots: First components of their names in the official code.
        ignored_roots: First components of names that a larger model has besides, in either code, such as memory for
            videos. They are dropped without a warning.
    """

    model_types: tuple[str, ...]
    canvas: Canvas
    image_processor_class: type | None = None
    processor_class: type
    anchor: str
    official_anchor: str
    roots: tuple[str, ...]
    official_roots: tuple[str, ...]
    ignored_roots: tuple[str, ...] = ()

    @abstractmethod
    def parse_config(self, raw: Mapping[str, Any], source: str) -> Any:
        """Return the configuration that a `config.json` describes.

        Absent fields and fields that are null get transformers' defaults. Unknown fields are ignored.

        Args:
            raw: The parsed JSON.
            source: The file's name in error messages.

        Raises:
            CheckpointError: A field has the wrong type or lies outside its limits, or two fields contradict each other.
        """

    @abstractmethod
    def config_fields(self, config: Any) -> dict[str, Any]:
        """Return every field of a configuration that affects a mask, as plain JSON types.

        The list of fields is fixed, so that the result does not depend on the version of transformers. Two
        configurations that build the same model return the same fields.
        """

    def client_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a `config.json` for clients outside of Python, which know fewer families.

        Args:
            fields: All fields of a configuration, as JSON types.
        """
        return dict(fields)

    @abstractmethod
    def check_config(self, config: Any, source: str) -> None:
        """Check a configuration that transformers parsed against the rules of `parse_config`.

        Raises:
            CheckpointError: As for `parse_config`, or the configuration differs between layers.
        """

    @abstractmethod
    def count_parameters(self, config: Any) -> int:
        """Return the approximate number of parameters of a model, without building it."""

    @abstractmethod
    def from_official(self, tensors: Mapping[str, object]) -> tuple[Any, dict[str, Tensor]]:
        """Return the configuration and the renamed state dict of an official checkpoint.

        Args:
            tensors: Official state dict: floating-point tensors of any dtype.

        Returns:
            The configuration, inferred from the shapes, and the tensors by their names in transformers.

        Raises:
            CheckpointError: A name is unknown or missing, a shape contradicts another one, or no known variant has
                these shapes.
        """

    @abstractmethod
    def rename_official(self, tensors: Mapping[str, object]) -> dict[str, Tensor]:
        """Return an official state dict under transformers' names.

        Raises:
            CheckpointError: A name is unknown, or has no tensor under it.
        """

    def infer_config(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return the configuration of tensors under transformers' names, without a `config.json`.

        Raises:
            CheckpointError: The shapes do not determine it.
        """
        raise NotImplementedError

    def module_names(self, tensors: dict[str, Value]) -> dict[str, Value]:
        """Return the tensors of a file by the names of modules, where transformers saves other names."""
        return tensors

    def resize(
        self, config: Any, tensors: Mapping[str, Tensor], image_size: int
    ) -> tuple[Any, Mapping[str, Tensor]]:
        """Return the configuration and the tensors of a model at another input size.

        By default, models of a family have one size.

        Args:
            config: Configuration of the model as stored.
            tensors: Tensors by their names in transformers. Those that depend on the size are interpolated.
            image_size: Side of the square input in pixels.

        Raises:
            ValueError: The model cannot have this size. The message names the sizes that it can have.
            CheckpointError: A tensor to interpolate does not fit the configuration.
        """
        raise ValueError(f"image_size: models of type {self.model_types[0]!r} have one input size")

    def image_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors of a state dict without those under `ignored_roots`."""
        return {
            name: value for name, value in tensors.items() if name.partition(".")[0] not in self.ignored_roots
        }
