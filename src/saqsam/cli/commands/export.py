"""Implementation of `saqsam export`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import SamModel, SamProcessor

from saqsam.analysis.inventory import Inventory, take_inventory
from saqsam.analysis.macs import count_macs
from saqsam.checkpoint import quantization_config_of
from saqsam.cli.inputs import load_torch, write_json
from saqsam.cli.options import SCENES
from saqsam.cli.outputs import claim_output
from saqsam.cli.progress import busy, progress_phases
from saqsam.cli.result_tables import print_export
from saqsam.cli.terminal import say
from saqsam.data.open import open_dataset
from saqsam.export import check_export, export_model
from saqsam.export.formats import FORMATS
from saqsam.export.layouts.contract import OWN_LAYOUT
from saqsam.export.manifest import Manifest
from saqsam.verification.verify import parity_content, runtimes_to_judge, verify_export

PARITY_IMAGES = 4
"""Most scenes on which an export is compared with PyTorch."""
PARITY_MACS = 10**12
"""Multiply-accumulates of PyTorch for the comparison, about half a minute of a core: two images of SAM-B, one of SAM-L
or SAM-H."""


def export(
    model_name: str,
    out_dir: Path,
    *,
    image_size: int | None,
    format: str,
    layout: str,
    single_mask: bool,
    opset: int | None,
    free_batch: bool,
    web_runtime: Path | None,
    runtime: str | None,
    min_parity: float,
    overwrite: bool,
) -> None:
    """Export a model, and put the files in place if the masks of all runtimes agree with PyTorch's."""
    check_export(
        format,
        out_dir,
        layout=layout,
        single_mask=single_mask,
        opset=opset,
        free_batch=free_batch,
        web_runtime=web_runtime,
        overwrite=overwrite,
    )
    runtimes = runtimes_to_judge(format, None if runtime is None else [runtime], min_parity)
    with claim_output(out_dir, overwrite=overwrite) as output:
        folder = output.staged
        model, processor = load_torch(model_name, "cpu", image_size)
        with busy(f"writing {out_dir}"):
            manifest = export_model(
                model,
                processor,
                folder,
                format=format,
                layout=layout,
                single_mask=single_mask,
                opset=opset,
                free_batch=free_batch,
                web_runtime=web_runtime,
            )
        inventory = None if quantization_config_of(model) is None else take_inventory(model)
        images = parity_images(count_macs(model.config).parts.total())
        data = open_dataset(SCENES, limit=images)
        with (
            _own_layout(folder, layout, model, processor, opset) as own,
            progress_phases("images") as progress,
        ):
            parities = verify_export(
                own,
                model,
                processor,
                data,
                min_parity=min_parity,
                runtimes=None if runtime is None else runtimes,
                progress=progress,
            )
        write_json(folder / "parity.json", parity_content(parities, min_parity))
        output.place_folder()
    sizes = {name: (out_dir / name).stat().st_size for name in manifest.files}
    print_export(manifest, sizes, _float32_bytes(model, inventory), inventory, parities)
    say(f"export: {out_dir}")
    for line in _next_steps(manifest, out_dir):
        say(line)


def _next_steps(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Yield what remains to be done with an export that is a web page; nothing for other formats."""
    if not FORMATS[manifest.format].has_web_runtime:
        return
    from saqsam.export.web.runtime import CDN, VERSION

    if manifest.details["runtime"]["base"] == CDN:
        yield (
            f"the page loads onnxruntime-web {VERSION} from {CDN}; to serve it from the folder instead: npm install "
            f"onnxruntime-web@{VERSION}, and export again with --onnxruntime-web node_modules/onnxruntime-web"
        )
    yield f"to open it: python -m http.server --directory {folder}, and http://localhost:8000 in a browser"


@contextmanager
def _own_layout(
    folder: Path, layout: str, model: SamModel, processor: SamProcessor, opset: int | None
) -> Iterator[Path]:
    """Yield the export in saqsam's own layout: the folder itself, or a temporary one with the same graphs."""
    if layout == OWN_LAYOUT:
        yield folder
        return
    from saqsam.export.layouts.write import contract_of

    single_mask = contract_of(layout, model.config).single_mask
    with tempfile.TemporaryDirectory(prefix="saqsam-") as name:
        own = Path(name) / "export"
        export_model(model, processor, own, single_mask=single_mask, opset=opset)
        yield own


def _float32_bytes(model: SamModel, inventory: Inventory | None) -> int:
    """Return the bytes of a model's parameters in float32."""
    if inventory is not None:
        return inventory.float32_bytes
    parameters: int = sum(parameter.numel() for parameter in model.parameters())
    return 4 * parameters


def parity_images(macs: int) -> int:
    """Return the number of scenes to compare an export on: as many as `PARITY_MACS` allow, from 1 to `PARITY_IMAGES`.

    A fault of an export shows on any image, in all of its masks; more images only steady the mean IoU.

    Args:
        macs: Multiply-accumulates of the model for one image.
    """
    return min(PARITY_IMAGES, max(1, PARITY_MACS // macs))
