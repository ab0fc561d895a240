"""The files of the page, which web exports and `saqsam serve` share, and those of web exports alone."""

from __future__ import annotations

import importlib.resources

SHARED = ("index.html", "page.css", "page.js")
"""Files that show the page. They import `models.js`, of which web exports and `saqsam serve` have one each."""
LOCAL = ("models.js", "worker.js", "prompts.js", "pixels.js", "masks.js")
"""Files that compute in the browser."""
SAMPLES = ("cat.jpg", "coffee.jpg", "astronaut.jpg")
"""Photographs in the folder `samples`."""

_CHARSET = '<meta charset="utf-8">\n'
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
"""Content security policy of the page. A static server sends none, so that the page itself has to."""
_STARTING = "Starting …"
_NOT_STARTED = (
    "Starting … If nothing happens, this page was opened as a file or the browser is too old: run "
    "python -m http.server in its folder, and open http://localhost:8000."
)
"""Message in place of `_STARTING`, which remains where no script runs."""


def read_page(name: str) -> bytes:
    """Return a shared file, one of `SHARED`, or `samples/` and one of `SAMPLES`."""
    return _read("shared", name)


def local_page() -> dict[str, bytes]:
    """Return the page of a web export: contents by file name, in which `samples/` is a folder."""
    files = {name: read_page(name) for name in (*SHARED, *(f"samples/{name}" for name in SAMPLES))}
    files["index.html"] = _with_policy(files["index.html"].decode()).encode()
    return files | {name: _read("local", name) for name in LOCAL}


def _with_policy(index: str) -> str:
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    return index.replace(_CHARSET, _CHARSET + policy, 1).replace(_STARTING, _NOT_STARTED, 1)


def _read(folder: str, name: str) -> bytes:
    return importlib.resources.files("saqsam.export.web").joinpath(folder, name).read_bytes()
