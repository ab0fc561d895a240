"""The interface of a runtime: a backend that runs an exported folder."""

from __future__ import annotations

from typing import Protocol

from saqsam.export.manifest import Manifest
from saqsam.inference.backend import Backend


class Runtime(Backend, Protocol):
    """A backend that runs an exported folder.

    Attributes:
        manifest: Manifest of the folder.
    """

    manifest: Manifest
