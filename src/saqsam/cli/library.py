"""Import of the library for a command, without the log messages of other packages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from saqsam.cli.terminal import starting


@contextmanager
def library() -> Iterator[None]:
    """Import torch and transformers behind a "starting" spinner; silence their log messages while the block runs."""
    # Messages while these are imported, where ExecuTorch is installed.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with starting():
        import saqsam.cli.inputs  # noqa: F401
    with quiet_transformers():
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence warnings and progress bars of transformers while the block runs."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    has_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()
