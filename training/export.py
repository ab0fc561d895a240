"""Write the averaged weights of a run into the package: `python training/export.py RUN FOLDER`.

The folder gets `model.safetensors` (float16), `config.json` and `processor_config.json`, each under its name only when
whole.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from saqsam.models.processing import build_processor
from state_files import load_state
from trainees import SAM_MINI, TRAINEES


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=list(TRAINEES), default=SAM_MINI.name)
    return parser


def main() -> None:
    """Run the command line."""
    args = parser().parse_args()
    state = load_state(args.run)
    if state is None:
        parser().error(f"{args.run} holds no state of a training run")
    model = TRAINEES[args.model].build()
    model.load_state_dict({**state["model"], **state["average"]})
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as partial:
        model.half().save_pretrained(partial)
        build_processor(model.config).save_pretrained(partial)
        for file in Path(partial).iterdir():
            file.replace(args.folder / file.name)
    print(
        f"{args.folder}: step {state['step']}, {state['samples']} samples, {state['seconds'] / 3600:.1f} hours"
    )


if __name__ == "__main__":
    main()
