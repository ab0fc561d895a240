"""`saqsam serve`: the process answers until it is interrupted, and says at once what is wrong."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from saqsam.checkpoint import checkpoint_tensors
from saqsam.cli.commands.serve import _bytes
from support.command_line import assert_refused, run
from support.tiny_quantized import quantized_tiny


def ask(address: str, path: str) -> dict[str, object]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}{path}", timeout=20) as response:
        content: dict[str, object] = json.load(response)
    return content


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_server_answers_until_it_is_interrupted(tiny: Path, packed: Path, ending: signal.Signals) -> None:
    command = [sys.executable, "-m", "saqsam", "serve", str(tiny), str(packed), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=default_interrupt
    ) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\n", process.stdout.readline())
            assert found, process.stderr and process.stderr.read()
            models = ask(found[1], "/api/state")["models"]
            process.send_signal(ending)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert [(one["name"], one["kind"]) for one in models] == [  # type: ignore[index, attr-defined]
        ("tiny", "float"),
        ("packed", "min-max-w4a4"),
    ]
    sizes = [one["bytes"] for one in models]  # type: ignore[index, attr-defined]
    assert sizes[1] == sum(file.stat().st_size for file in packed.glob("*.safetensors"))
    assert sizes[0] > sizes[1]


def default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_port_in_use_is_told_before_models_are_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_refused(run("serve", "none", "--port", port), f"--port: cannot listen on 127.0.0.1:{port}")


def test_wrong_arguments_are_refused(tiny: Path) -> None:
    assert_refused(run("serve", "none", "--port", "0"), "no model 'none'")
    assert_refused(run("serve", tiny, tiny, "--port", "0"), "expected different models")
    assert_refused(run("serve", tiny, "--host", "nowhere.invalid", "--port", "0"), "--host: cannot listen on")


def test_a_checkpoint_from_the_hub_has_the_size_of_its_tensors() -> None:
    model = quantized_tiny()
    size = _bytes("owner/name", model)
    assert size == sum(one.numel() * one.element_size() for one in checkpoint_tensors(model).values())
