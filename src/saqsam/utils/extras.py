"""The command that installs optional packages of saqsam."""

from __future__ import annotations


def install_command(extra: str) -> str:
    """Return the command that installs an extra of saqsam, for error messages."""
    return f"pip install 'saqsam[{extra}]', or '.[{extra}]' in a clone"
