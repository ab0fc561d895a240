"""Implementation of `saqsam serve`."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from saqsam.checkpoint import checkpoint_tensors, quantization_config_of
from saqsam.cli.commands.compare import split_runtime
from saqsam.cli.inputs import open_model
from saqsam.cli.terminal import say
from saqsam.inference.predictor import Predictor
from saqsam.runtimes.registry import default_runtime
from saqsam.serve.session import ServedModel, Session
from saqsam.utils.extras import install_command

LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    models: Sequence[str], *, host: str, port: int, device: str, threads: int | None, image_size: int | None
) -> None:
    """Load models and answer the page until the process is interrupted."""
    try:
        import uvicorn

        from saqsam.serve.app import ANY_HOST, create_app
    except ImportError:
        raise ValueError(f"serve needs Starlette and uvicorn: {install_command('serve')}") from None
    listener = _listen(host, port)
    with listener:
        names = _names(models)
        session = Session(
            [_load(text, name, device, threads, image_size) for text, name in zip(models, names, strict=True)]
        )
        address, number = listener.getsockname()[:2]
        is_local = host in LOCAL
        token = None if is_local else secrets.token_urlsafe(16)
        shown = f"[{address}]" if ":" in address else address
        hosts = (
            [f"{name}:{number}" for name in ("127.0.0.1", "localhost", "[::1]")] if is_local else [ANY_HOST]
        )
        listener.listen()  # whoever connects from here on is answered when the server runs
        app = create_app(session, hosts, token, workers=os.cpu_count() or 1)
        say(f"http://{shown}:{number}/" + ("" if token is None else f"?token={token}"))
        say("Ctrl-C ends the server")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            say("ended")


def _listen(host: str, port: int) -> socket.socket:
    """Bind a port before the models are loaded, so that a port in use is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"--host: cannot listen on {host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"--port: cannot listen on {host}:{port}: {error.strerror}; choose another one"
        ) from error
    return listener


def _names(models: Sequence[str]) -> list[str]:
    """Return the names on the page: the last part of a path, or the whole text where two are equal."""
    short = [Path(text).name or text for text in models]
    names = [one if short.count(one) == 1 else text for one, text in zip(short, models, strict=True)]
    if len(set(names)) < len(names):
        raise ValueError("serve: expected different models, got one twice")
    return names


def _load(text: str, name: str, device: str, threads: int | None, image_size: int | None) -> ServedModel:
    path, runtime = split_runtime(text)
    model, processor, recipe = open_model(path, device, runtime, threads, image_size)
    manifest = getattr(model, "manifest", None)
    kind = recipe if manifest is None else f"{recipe}, {runtime or default_runtime(manifest.format)}"
    return ServedModel(name, kind, _bytes(path, model), Predictor(model, processor))


def _bytes(path: str, model: Any) -> int:
    """Return the bytes of a model: its parameters in float32, or the files of a checkpoint or an export."""
    if isinstance(model, PreTrainedModel) and quantization_config_of(model) is None:
        return sum(4 * parameter.numel() for parameter in model.parameters())
    if Path(path).is_dir():
        suffixes = (".safetensors", ".onnx", ".xml", ".bin", ".pte")
        return sum(file.stat().st_size for file in Path(path).iterdir() if file.suffix in suffixes)
    # From the Hub.
    return sum(tensor.numel() * tensor.element_size() for tensor in checkpoint_tensors(model).values())
