"""Saving, loading, refusing: the packed checkpoint."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_sam import tiny_pixels, tiny_processor, tiny_sam
from transformers import SamConfig, SamModel
from transformers.utils import logging as transformers_logging

import saqsam
from saqsam import checkpoint
from saqsam.data.scenes import ScenesDataset
from saqsam.models.structure import SamStructure
from saqsam.prepare import build_packed_skeleton
from saqsam.recipe import Recipe

BOXES = torch.tensor([[[5.0, 5.0, 40.0, 40.0], [10.0, 20.0, 60.0, 50.0]]])


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers_logging.disable_progress_bar()


def make(bits: str = "w4a4", **changes: object) -> SamModel:
    values = saqsam.recipe_for("min-max", bits).to_dict() | changes
    values["calibration"] = {**values["calibration"], "images": 2}
    recipe = Recipe.from_dict(values)
    return saqsam.quantize(tiny_sam(), tiny_processor(), recipe, ScenesDataset(2, size=(64, 64)))


@pytest.fixture(scope="module")
def quantized() -> SamModel:
    return make()


@pytest.fixture(scope="module")
def written(quantized: SamModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saqsam.save_checkpoint(quantized, tiny_processor(), tmp_path_factory.mktemp("made") / "w4a4")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def masks(model: SamModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(pixel_values=tiny_pixels(1, 0), input_boxes=BOXES).pred_masks


def both_loaders(folder: Path) -> list[Callable[[], SamModel]]:
    return [lambda: saqsam.load_checkpoint(folder), lambda: SamModel.from_pretrained(folder)]


def test_reloaded_masks_are_equal_bit_for_bit(quantized: SamModel, written: Path) -> None:
    for load in both_loaders(written):
        assert torch.equal(masks(load()), masks(quantized))
    assert torch.equal(masks(saqsam.load(written)[0]), masks(quantized))


def test_a_fresh_process_gives_the_same_masks(quantized: SamModel, written: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch, saqsam; from transformers import SamModel; torch.set_num_threads(int(sys.argv[4]))\n"
        "x, boxes = torch.load(sys.argv[2]); model = SamModel.from_pretrained(sys.argv[1])\n"
        "with torch.inference_mode(): torch.save(model(pixel_values=x, input_boxes=boxes).pred_masks, sys.argv[3])"
    )
    inputs, outputs = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save((tiny_pixels(1, 0), BOXES), inputs)
    threads = str(torch.get_num_threads())
    subprocess.run(
        [sys.executable, "-c", script, str(written), str(inputs), str(outputs), threads],
        check=True,
        capture_output=True,
    )
    assert torch.equal(torch.load(outputs), masks(quantized))


@pytest.mark.parametrize("bits", ["w2a8", "w3a5", "w8a8"])
def test_other_widths_and_extra_parts(bits: str, tmp_path: Path) -> None:
    extra = {name: 8 for name in saqsam.recipe_for().extra} | {"position_embedding": 8, "patch_embedding": 8}
    model = make(bits, extra={**extra, "hypernetworks": 6, "upscaling": 8, "iou_head": 8})
    saqsam.save_checkpoint(model, tiny_processor(), tmp_path / "c")
    for load in both_loaders(tmp_path / "c"):
        assert torch.equal(masks(load()), masks(model))


def test_another_dtype_keeps_float32(quantized: SamModel, written: Path) -> None:
    loaded = SamModel.from_pretrained(written, dtype=torch.float16)
    assert loaded.dtype == torch.float32
    assert torch.equal(masks(loaded), masks(quantized))


def test_no_float_weight_of_a_quantized_layer_is_stored(written: Path) -> None:
    structure = SamStructure(SamConfig.from_pretrained(written))
    with safe_open(written / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        for site in structure.layers:
            assert f"{site.name}.weight" not in names
            assert file.get_tensor(f"{site.name}.weight.codes").dtype == torch.uint8
        floats = {file.get_tensor(n).dtype for n in names if not n.endswith((".codes", ".zero_point", ".scale"))}
    assert floats == {torch.float16}


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


KEY = "vision_encoder.layers.0.attn.qkv.weight.scale"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (truncate, "cut short"),
    "a flipped bit": (flip_a_byte, "altered"),
    "a missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(KEY)), "lacks"),
    "an unknown tensor": (lambda f: edit_tensors(f, lambda t: t.update(more=torch.zeros(1))), "unknown more"),
    "another shape": (lambda f: edit_tensors(f, lambda t: t.update({KEY: torch.ones(7)})), "must have shape"),
    "a newer format": (lambda f: edit_config(f, lambda q: q.update(format_version=2)), "format version 2"),
    "an unknown field": (lambda f: edit_config(f, lambda q: q["recipe"].update(bit=4)), "no field 'bit'"),
    "other bits": (lambda f: edit_config(f, lambda q: q["recipe"]["weights"].update(bits=5)), "must have shape"),
    "no hash": (lambda f: edit_config(f, lambda q: q.pop("content_sha256")), "altered"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_with_its_cause(damage: str, folder: Path) -> None:
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(ValueError, match=message):
        saqsam.load_checkpoint(folder)
    with pytest.raises((ValueError, OSError, RuntimeError, Exception)):
        SamModel.from_pretrained(folder)


def test_a_float_folder_is_no_checkpoint(tmp_path: Path) -> None:
    tiny_sam().save_pretrained(tmp_path / "float")
    with pytest.raises(ValueError, match="not a checkpoint of saqsam"):
        saqsam.load_checkpoint(tmp_path / "float")
    with pytest.raises(ValueError, match="cannot be read"):
        saqsam.load_checkpoint(tmp_path / "nothing")
    with pytest.raises(ValueError, match="float"):
        saqsam.save_checkpoint(tiny_sam(), tiny_processor(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_kept_unless_overwritten(quantized: SamModel, folder: Path) -> None:
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists"):
        saqsam.save_checkpoint(quantized, tiny_processor(), folder)
    assert (folder / "mine.txt").read_text() == "keep"
    saqsam.save_checkpoint(quantized, tiny_processor(), folder, overwrite=True)
    assert not (folder / "mine.txt").exists()
    assert torch.equal(masks(saqsam.load_checkpoint(folder)), masks(quantized))
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_failed_write_leaves_nothing_and_the_old(
    quantized: SamModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        saqsam.save_checkpoint(quantized, tiny_processor(), folder, overwrite=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_save_pretrained_writes_a_checkpoint_too(quantized: SamModel, tmp_path: Path) -> None:
    quantized.save_pretrained(tmp_path / "hf")
    assert torch.equal(masks(saqsam.load_checkpoint(tmp_path / "hf")), masks(quantized))


def stored_bytes(recipe: Recipe) -> tuple[int, int]:
    """Bytes of a SAM-B checkpoint and of its float32 parameters, without allocating either."""
    config = SamConfig()
    with torch.device("meta"):
        model = SamModel(config)
        plain = 4 * sum(p.numel() for p in model.parameters())
        build_packed_skeleton(model, SamStructure(config), recipe)
    total = 0
    for name, tensor in model.state_dict().items():
        if name == "prompt_encoder.shared_embedding.positional_embedding":
            continue
        kept = not tensor.is_floating_point() or name.endswith(".scale")
        total += tensor.numel() * (tensor.element_size() if kept else 2) + len(name) + 80  # with the header's entry
    return total, plain


def test_sam_b_at_four_bits_is_as_small_as_promised() -> None:
    packed, plain = stored_bytes(saqsam.recipe_for("mse", "w4a4"))
    assert plain / packed >= 6.8
    values = saqsam.recipe_for("mse", "w4a4").to_dict() | {"extra": {"position_embedding": 8, "patch_embedding": 8}}
    packed, plain = stored_bytes(Recipe.from_dict(values))
    assert plain / packed >= 7.0
