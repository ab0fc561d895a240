"""Build a float model from a configuration and exactly its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from saqsam.models.configuration import check_config
from saqsam.models.registry import family_of
from saqsam.models.weights import read_safetensors, read_torch
from saqsam.utils.errors import CheckpointError, shorten_names


def build_model(
    config: Any,
    tensors: Mapping[str, torch.Tensor],
    *,
    source: str,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
) -> Any:
    """Return a model that holds exactly `tensors`.

    Args:
        config: The model's configuration.
        tensors: Floating-point tensors by their names in transformers; tied tensors may have either name or both.
            Tensors are copied, so that memory-mapped files can be closed or changed afterwards.
        source: Origin of the tensors, for error messages.
        device: Device of the model.
        image_size: Side of the square input in pixels, to which the model is resized; by default, that of `config`.

    Returns:
        The model in float32 and eval mode.

    Raises:
        CheckpointError: No supported model has this configuration, or a tensor is missing, unknown, of the wrong
            shape, not floating point, or not finite.
        ValueError: The model cannot have this input size.
    """
    check_config(config, source)
    family = family_of(config)
    if image_size is not None and image_size != family.input_spec(config).image_size:
        try:
            config, tensors = family.format.resize(config, tensors, image_size)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error
        check_config(config, source)
    with torch.device("meta"):
        model = family.build(config)
    tied = family.structure(config).tied
    merged = _merge_tied(tensors, tied, source)
    del tensors
    expected = {name: value.shape for name, value in model.state_dict().items() if name not in tied}
    _check_names_and_shapes(merged, expected, source)
    state: dict[str, torch.Tensor] = {}
    for name in list(merged):
        value = merged.pop(name)  # its pages can go as soon as it is copied
        # Copy: a memory-mapped tensor must not outlive its file, and its missing alignment changes the last bits of
        # some matrix products.
        value = value.detach().to(device=device, dtype=torch.float32, copy=True)
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinity")
        state[name] = value
    model.load_state_dict(state, strict=False, assign=True)
    family.tie(model)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    model.config.dtype = torch.float32  # whatever dtype the file had
    return model.eval()


def check_float_names(files: Sequence[Path], model: Any) -> None:
    """Check that files hold exactly the tensors of a model, before transformers reads them.

    transformers initializes missing tensors randomly and only warns.

    Args:
        files: Files of one model, in safetensors or `torch.save` format.
        model: The float model, usually on the meta device.

    Raises:
        CheckpointError: A file is damaged, or a tensor is missing or unknown.
    """
    names: set[str] = set()
    for path in files:
        names.update(read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path))
    if not files:
        return
    family = family_of(model.config)
    tied = family.structure(model.config).tied
    expected = set(model.state_dict()) - set(tied)
    names = {tied.get(name, name) for name in family.format.module_names(dict.fromkeys(names))}
    problems = [("missing", expected - names), ("unknown", names - expected)]
    if names != expected:
        named = "; ".join(
            f"{len(some)} {problem}: {shorten_names(some)}" for problem, some in problems if some
        )
        raise CheckpointError(f"{files[0].parent}: the tensors do not fit the model: {named}")


def _merge_tied(
    tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str], source: str
) -> dict[str, torch.Tensor]:
    """Return `tensors` with tied tensors under one name alone."""
    merged = dict(tensors)
    for copy_name, name in tied.items():
        copy = merged.pop(copy_name, None)
        if copy is not None and not torch.equal(merged.setdefault(name, copy), copy):
            raise CheckpointError(f"{source}: expected {name} and {copy_name} to be equal, they differ")
    return merged


def _check_names_and_shapes(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size], source: str
) -> None:
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    wrong = [
        f"{name} of shape {tuple(tensors[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [("missing", missing), ("unknown", unknown), ("misshapen", wrong)]
    named = "; ".join(f"{len(some)} {problem}: {shorten_names(some)}" for problem, some in problems if some)
    if named:
        raise CheckpointError(f"{source}: the tensors do not fit the model: {named}")
    others = [
        name
        for name, value in tensors.items()
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta
    ]
    if others:
        raise CheckpointError(
            f"{source}: expected floating-point tensors, got others: {shorten_names(others)}"
        )
