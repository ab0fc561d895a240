"""The OpenVINO core of the process."""

from __future__ import annotations

import functools

import openvino


@functools.cache
def openvino_core() -> openvino.Core:
    """Return the core that the whole process shares; it is never destroyed.

    OpenVINO's CPU plugin (2026.4) installs an alternate signal stack. When the last core and its models are gone, the
    plugin frees the stack but leaves it installed, and the next signal, such as Ctrl-C, is a segmentation fault.
    """
    return openvino.Core()
