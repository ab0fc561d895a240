"""The OpenVINO core of the process."""

from __future__ import annotations

import functools

import numpy as np
import openvino
from openvino import opset13

_DEPTH, _WIDTH = 64, 32
"""Sides of the probe's matrices, large enough for the kernels of layers."""


@functools.cache
def openvino_core() -> openvino.Core:
    """Return the core that the whole process shares; it is never destroyed.

    OpenVINO's CPU plugin (2026.4) installs an alternate signal stack. When the last core and its models are gone, the
    plugin frees the stack but leaves it installed, and the next signal, such as Ctrl-C, is a segmentation fault.
    """
    return openvino.Core()


def make_exact(model: openvino.Model) -> dict[str, str]:
    """Prepare a model, in place, for computing on the CPU what its graph says, and return the settings for that.

    Where integer products saturate, the transformations to low precision are turned off: layers compute in float32.
    Otherwise nothing changes.
    """
    if not saturates_integers():
        return {}
    # Without those transformations, OpenVINO (2026.4) applies the wrong channels' scales where a matrix is normalized,
    # clipped and quantized. With a leading axis it does not.
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MVN" or node.get_input_partial_shape(0).rank != 2:
            continue
        attributes = node.get_attributes()
        first = opset13.constant(np.int64(0))
        normalized = opset13.mvn(
            opset13.unsqueeze(node.input_value(0), first),
            opset13.constant(np.array([-1])),
            attributes["normalize_variance"],
            attributes["eps"],
            attributes["eps_mode"],
        )
        node.output(0).replace(opset13.squeeze(normalized, first).output(0))
    return {"LP_TRANSFORMS_MODE": "NO"}


@functools.cache
def saturates_integers() -> bool:
    """Return whether OpenVINO's integer products of 8 bits saturate on this processor, found by computing one.

    On x86 processors without 8-bit dot products (VNNI), the CPU plugin (2026.4) adds pairs of products of u8 and s8 in
    16 bits, which overflow from 32,767 on.
    """
    pixels = opset13.parameter([_DEPTH, _DEPTH], openvino.Type.f32)
    low, high = (opset13.constant(np.float32(value)) for value in (0, 255))
    codes = opset13.fake_quantize(pixels, low, high, low, high, 256)
    weight = opset13.constant(np.full((_DEPTH, _WIDTH), 127, np.int8))
    scale = opset13.constant(np.full((1, _WIDTH), 1 / 127, np.float32))
    product = opset13.matmul(
        codes, opset13.multiply(opset13.convert(weight, openvino.Type.f32), scale), False, False
    )
    compiled = openvino_core().compile_model(openvino.Model([product], [pixels]), "CPU")
    result = compiled(np.full((_DEPTH, _DEPTH), 255, np.float32))[0]
    return not np.allclose(result, 255 * _DEPTH, rtol=1e-2)
