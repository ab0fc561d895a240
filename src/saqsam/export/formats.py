"""The export formats, one entry each; imports none of their packages, nor torch."""

from __future__ import annotations

import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from transformers import SamModel

PARTS = ("encoder", "decoder")
DEFAULT_FORMAT = "onnx"
OPSETS = (17, 18, 19, 20, 21)
"""ONNX operator sets that graphs can be written in: from the first with LayerNormalization to the first with 4-bit
integers, which is the default."""


class Writer(Protocol):
    """Function that writes the files of a format."""

    def __call__(
        self, model: SamModel, folder: Path, metadata: dict[str, str], *, single_mask: bool, **options: Any
    ) -> dict[str, Any]:
        """Write the files of encoder and decoder into a folder.

        Args:
            model: Quantized model, or a float one if the format accepts it.
            folder: Existing folder.
            metadata: Texts to store in the files, where the format has a place for them.
            single_mask: Let the decoder return one mask per prompt.
            **options: `opset`, `free_batch` and `web_runtime`, for formats that have them; absent for their defaults.

        Returns:
            What `export.json` records of the files beside their hashes, as JSON types.

        Raises:
            ExportError: The format cannot express the model's recipe.
        """
        ...


@dataclass(frozen=True)
class FormatEntry:
    """An export format.

    Attributes:
        name: Name of the format, and of the extra that installs its packages unless `extra` names another.
        suffixes: Suffixes of the files of a part; a runtime opens the first.
        packages: Packages that writing needs.
        writer: `module:function` of its `Writer`.
        has_node_names: Whether its files name their nodes, so that the first wrong one can be found.
        accepts_float: Whether float models can be written, too.
        opsets: ONNX operator sets to choose from; empty for formats without.
        has_free_batch: Whether the encoder may take any number of images per call.
        has_web_runtime: Whether an export may hold a copy of onnxruntime-web.
        extra: Extra that installs its packages; empty for one of the same name.
    """

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    writer: str
    has_node_names: bool = True
    accepts_float: bool = True
    opsets: tuple[int, ...] = ()
    has_free_batch: bool = False
    has_web_runtime: bool = False
    extra: str = ""

    def load_writer(self) -> Writer:
        """Import the function that writes the format."""
        writer: Writer = pkgutil.resolve_name(self.writer)
        return writer

    def missing_packages(self) -> list[str]:
        """Return the needed packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def main_file(self, part: str) -> str:
        """Return the name of the file of a part that a runtime opens."""
        return f"{part}.{self.suffixes[0]}"

    def file_names(self) -> set[str]:
        """Return the names of all model files of an export."""
        return {f"{part}.{suffix}" for part in PARTS for suffix in self.suffixes}


FORMATS = {
    entry.name: entry
    for entry in (
        FormatEntry(
            "onnx",
            ("onnx",),
            ("onnx",),
            "saqsam.export.onnx.writer:write_onnx",
            opsets=OPSETS,
            has_free_batch=True,
        ),
        FormatEntry(
            "openvino", ("xml", "bin"), ("onnx", "openvino"), "saqsam.export.openvino:write_openvino"
        ),
        FormatEntry(
            "executorch",
            ("pte",),
            ("executorch",),
            "saqsam.export.executorch.writer:write_executorch",
            has_node_names=False,
            accepts_float=False,
        ),
        FormatEntry(
            "web",
            ("onnx",),
            ("onnx",),
            "saqsam.export.web.writer:write_web",
            has_web_runtime=True,
            extra="onnx",
        ),
    )
}
"""The formats by name."""
