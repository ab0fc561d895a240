"""Implementation of `saqsam inspect`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from saqsam.analysis.inventory import take_inventory
from saqsam.checkpoint import load_checkpoint
from saqsam.cli.inputs import json_bytes
from saqsam.cli.outputs import claim_optional
from saqsam.cli.progress import busy
from saqsam.cli.result_tables import print_integer_layers, print_inventory
from saqsam.cli.terminal import say
from saqsam.export import is_export
from saqsam.runtimes import find_integer_layers
from saqsam.utils.atomic_write import check_file_writable


def inspect(folder: Path, *, json_file: Path | None, overwrite: bool) -> None:
    """Print the inventory of a checkpoint."""
    if is_export(folder):
        raise ValueError(f"{folder} is an export; inspect the checkpoint that it was made from")
    if json_file is not None:
        check_file_writable(json_file)
    with claim_optional(json_file, overwrite=overwrite) as output:
        with busy(f"reading {folder}"):
            model = load_checkpoint(folder)
            inventory, layers = take_inventory(model), find_integer_layers(model)
        if output is not None:
            content = {**inventory.to_dict(), "integer_layers": dataclasses.asdict(layers)}
            output.write(json_bytes(content))
    print_inventory(inventory, str(folder))
    print_integer_layers(layers)
    if json_file is not None:
        say(f"written: {json_file}")
