"""The packed checkpoint: it gives the same masks back, holds nothing more than it should, and notices damage."""

import copy as copy_module
import json
import math
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SamConfig, SamModel, SamProcessor, pipeline
from transformers.utils import import_utils
from transformers.utils import logging as transformers_logging

import saqsam
from saqsam import checkpoint
from saqsam.checkpoint import (
    WEIGHTS,
    SaqsamConfig,
    attach_quantizer,
    check_target,
    checkpoint_tensors,
    content_hash,
    hash_header,
    load_checkpoint,
    processor_hash,
    quantization_config_of,
    recipe_of,
    save_checkpoint,
)
from saqsam.checkpoint import folder as checkpoint_folder
from saqsam.convert.pack import build_packed_skeleton
from saqsam.convert.plan import plan_quantization
from saqsam.recipes.recipe import Recipe
from saqsam.utils import atomic_write as output
from support.tiny_quantized import (
    assert_same_outputs,
    mixed_recipe,
    mixed_tiny,
    outputs,
    quantized_tiny,
    tiny_data,
    tiny_recipe,
)
from support.tiny_sam import tiny_config, tiny_processor, tiny_sam
from support.torchvision_stub import torchvision_stub

Loader = Callable[[Path], SamModel]
MODELS = {"plain": quantized_tiny, "mixed": mixed_tiny}


@pytest.fixture(autouse=True, scope="module")
def _no_progress_bars() -> Iterator[None]:
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each of `MODELS`, to be read only."""
    folder = tmp_path_factory.mktemp("saved")
    return {name: save_checkpoint(make(), tiny_processor(), folder / name) for name, make in MODELS.items()}


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be damaged."""
    return Path(shutil.copytree(saved["plain"], tmp_path / "copy"))


def from_pretrained(folder: Path, **options: Any) -> SamModel:
    model = SamModel.from_pretrained(folder, **options)
    assert isinstance(model, SamModel)
    return model


def load(folder: Path) -> SamModel:
    return saqsam.load(folder)[0]


loaders = pytest.mark.parametrize("loader", [load_checkpoint, from_pretrained, load])
# `saqsam.load` hands checkpoints to `load_checkpoint`: the long lists need it no third time.
both_loaders = pytest.mark.parametrize("loader", [load_checkpoint, from_pretrained])
models = pytest.mark.parametrize("name", MODELS)


def header_of(folder: Path) -> dict[str, Any]:
    """The JSON at the start of the tensor file."""
    with (folder / WEIGHTS).open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    return header


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- there and back


@models
@loaders
def test_a_reloaded_model_is_the_same_bit_for_bit(saved: dict[str, Path], name: str, loader: Loader) -> None:
    model, original = loader(saved[name]), MODELS[name]()
    assert type(model) is SamModel
    assert_same_outputs(model, original)
    ours, theirs = model.state_dict(), original.state_dict()
    assert {key: (t.dtype, t.shape) for key, t in ours.items()} == {
        key: (t.dtype, t.shape) for key, t in theirs.items()
    }
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {key: repr(module) for key, module in model.named_modules()} == {
        key: repr(module) for key, module in original.named_modules()
    }
    assert recipe_of(model) == recipe_of(original)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.is_quantized
    shared = model.prompt_encoder.shared_embedding.positional_embedding
    assert shared is model.shared_image_embedding.positional_embedding


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_masks(saved: dict[str, Path], tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path

import torch
from transformers import SamModel

import saqsam
from support.tiny_quantized import outputs

result = {}
for name in ("plain", "mixed"):
    folder = Path(sys.argv[1]) / name
    for how, model in (
        ("load", saqsam.load(folder)[0]),
        ("from_pretrained", SamModel.from_pretrained(folder)),
    ):
        result |= {(name, how, key): tensor for key, tensor in outputs(model).items()}
torch.save(result, sys.argv[2])
"""
    found_at = tmp_path / "outputs.pt"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run(
        [sys.executable, "-c", script, str(saved["plain"].parent), str(found_at)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    result = torch.load(found_at, weights_only=True)
    assert len(result) == 2 * 2 * 4
    expected = {name: outputs(make()) for name, make in MODELS.items()}
    for (name, how, key), tensor in result.items():
        assert torch.equal(tensor, expected[name][key]), (name, how, key)


@models
@both_loaders
def test_save_pretrained_writes_a_checkpoint(
    saved: dict[str, Path], name: str, loader: Loader, tmp_path: Path
) -> None:
    loader(saved[name]).save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == (saved[name] / WEIGHTS).read_bytes()
    assert quantization_config_of(load_checkpoint(tmp_path)).to_dict() == (  # type: ignore[union-attr]
        quantization_config_of(load_checkpoint(saved[name])).to_dict()  # type: ignore[union-attr]
    )
    assert_same_outputs(from_pretrained(tmp_path), MODELS[name]())


def test_saving_twice_gives_the_same_bytes(saved: dict[str, Path], tmp_path: Path) -> None:
    again = save_checkpoint(load_checkpoint(saved["plain"]), tiny_processor(), tmp_path / "again")
    assert tree(again) == tree(saved["plain"])


def test_a_reloaded_model_does_not_depend_on_its_files(copy: Path) -> None:
    models = [loader(copy) for loader in (load_checkpoint, from_pretrained)]
    with (copy / WEIGHTS).open("r+b") as file:  # in place: what is mapped from the file would change with it
        file.write(bytes((copy / WEIGHTS).stat().st_size))
    for model in models:
        assert_same_outputs(model, quantized_tiny())
        # Nor on where its tensors lay in them, which would change the last bits of some products.
        assert all(tensor.data_ptr() % 64 == 0 for tensor in model.state_dict().values())


def test_the_processor_is_saved_beside_the_model(saved: dict[str, Path]) -> None:
    image = tiny_data()[0].image
    expected = tiny_processor()(images=image, return_tensors="pt")
    for processor in (SamProcessor.from_pretrained(saved["plain"]), saqsam.load(saved["plain"])[1]):
        found = processor(images=image, return_tensors="pt")
        assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_mask_generation_of_transformers(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    message = import_utils.BACKENDS_MAPPING["torchvision"][1]
    with torchvision_stub():
        generator = pipeline("mask-generation", model=str(saved["plain"]))
        assert recipe_of(generator.model) == tiny_recipe()
        assert_same_outputs(generator.model, quantized_tiny())
        # transformers asks once and for all whether torchvision is installed.
        monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "torchvision", (lambda: True, message))
        image = Image.fromarray(tiny_data()[0].image)
        found = generator(
            image, points_per_crop=4, pred_iou_thresh=-100.0, stability_score_thresh=0.0, mask_threshold=0.0
        )
    assert len(found["masks"]) == len(found["scores"]) > 0
    assert all(
        mask.shape == (48, 64) and mask.dtype == bool for mask in map(torch.Tensor.numpy, _tensors(found))
    )


def _tensors(found: dict[str, Any]) -> list[Tensor]:
    return [torch.as_tensor(mask) for mask in found["masks"]]


# ---- what is stored


@models
def test_no_float_weight_is_stored(saved: dict[str, Path], name: str) -> None:
    header = header_of(saved[name])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert set(header) == set(checkpoint_tensors(MODELS[name]()))
    for key, entry in header.items():
        if key.endswith(".codes"):
            assert entry["dtype"] == "U8"
        elif key.endswith("scale"):
            assert entry["dtype"] == "F32"
        elif key.endswith("zero_point"):
            assert entry["dtype"] == ("U8" if ".weight." in key or "pos_embed" in key else "I32")
        else:
            assert entry["dtype"] == "F16", key
    # A packed layer has codes for a weight; the second name of the shared embedding is not stored.
    for key in header:
        if key.endswith(".codes"):
            assert key.removesuffix(".codes") not in header
    assert "prompt_encoder.shared_embedding.positional_embedding" not in header
    assert ("vision_encoder.pos_embed" in header) == (name == "plain")


def test_config_json_says_what_it_is(saved: dict[str, Path]) -> None:
    config = json.loads((saved["mixed"] / "config.json").read_text())
    assert config["architectures"] == ["SamModel"]
    quantization = config["quantization_config"]
    assert quantization == {
        "quant_method": "saqsam",
        "format_version": checkpoint.FORMAT_VERSION,
        "saqsam_version": saqsam.__version__,
        "processor_sha256": processor_hash(tiny_processor()),
        "content_sha256": content_hash(
            load_file(saved["mixed"] / WEIGHTS),
            hash_header(tiny_config(), mixed_recipe().to_dict(), processor_hash(tiny_processor())),
        ),
        "recipe": mixed_recipe().to_dict(),
    }
    assert Recipe.from_dict(quantization["recipe"]) == mixed_recipe()


def make_version_1(folder: Path) -> None:
    """Rewrite `config.json` as saqsam wrote it in format version 1."""
    config = json.loads((folder / "config.json").read_text())
    quantization = config["quantization_config"]
    del quantization["processor_sha256"]
    quantization["format_version"] = 1
    quantization["content_sha256"] = content_hash(load_file(folder / WEIGHTS), quantization["recipe"])
    (folder / "config.json").write_text(json.dumps(config))


def test_a_checkpoint_of_version_1_without_later_recipe_fields_loads(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved["mixed"], tmp_path / "older"))
    edit_quantization(lambda q: (q["recipe"].pop("equalized"), q["recipe"]["probabilities"].pop("finest")))(
        folder
    )
    make_version_1(folder)
    for number, loader in enumerate((load_checkpoint, from_pretrained)):
        with pytest.warns(UserWarning, match="format version 1, whose hash does not cover"):
            model = loader(folder)
        assert recipe_of(model) == mixed_recipe()
        assert_same_outputs(model, mixed_tiny())
        saved_again = save_checkpoint(model, tiny_processor(), tmp_path / f"again-{number}")
        assert quantization_config_of(load_checkpoint(saved_again)).format_version == 2  # type: ignore[union-attr]


def test_save_pretrained_upgrades_version_1(copy: Path, tmp_path: Path) -> None:
    make_version_1(copy)
    with pytest.warns(UserWarning, match="format version 1"):
        from_pretrained(copy).save_pretrained(tmp_path / "again")
    tiny_processor().save_pretrained(tmp_path / "again")
    assert_same_outputs(load(tmp_path / "again"), quantized_tiny())


def test_the_hash_covers_names_dtypes_shapes_values_and_the_recipe() -> None:
    recipe = tiny_recipe().to_dict()
    tensors = {"a": torch.arange(6, dtype=torch.int32), "b": torch.ones(()), "c": torch.zeros(0)}
    original = content_hash(tensors, recipe)
    assert original == content_hash(dict(reversed(tensors.items())), recipe)
    assert original == content_hash({name: tensor.clone() for name, tensor in tensors.items()}, recipe)
    others = [
        {**tensors, "a": tensors["a"].reshape(2, 3)},
        {**tensors, "a": tensors["a"].view(torch.float32)},
        {**tensors, "a": tensors["a"].flip(0)},
        {**tensors, "b": torch.tensor(1.0000001)},
        {"a": tensors["a"], "d": tensors["b"], "c": tensors["c"]},
        {"a": tensors["a"], "b": tensors["b"]},
    ]
    hashes = {original, *(content_hash(other, recipe) for other in others)}
    hashes.add(content_hash(tensors, tiny_recipe(quantized_rel_pos_query=True).to_dict()))
    assert len(hashes) == len(others) + 2


def stored_bytes(config: SamConfig, recipe: Recipe) -> int:
    """Size of the tensor file of a checkpoint, from a model that holds no data."""
    with torch.device("meta"):
        model = SamModel(config)
        build_packed_skeleton(model, plan_quantization(config, recipe))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    total = 0
    names = {torch.uint8: "U8", torch.int32: "I32", torch.float32: "F32"}
    for name, tensor in model.state_dict().items():
        if name == "prompt_encoder.shared_embedding.positional_embedding":
            continue
        is_half = tensor.is_floating_point() and not name.endswith(".scale")
        size = tensor.numel() * (2 if is_half else tensor.element_size())
        dtype = "F16" if is_half else names[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [total, total + size]}
        total += size
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + text + -text % 8 + total


@models
def test_the_predicted_size_is_that_of_the_file(saved: dict[str, Path], name: str) -> None:
    model = MODELS[name]()
    found = (saved[name] / WEIGHTS).stat().st_size
    # Offsets have a few more or fewer digits in another order of the tensors.
    assert stored_bytes(model.config, recipe_of(model)) == pytest.approx(found, rel=0.01)


def test_four_bits_shrink_sam_b_to_less_than_a_seventh() -> None:
    config = SamConfig()
    with torch.device("meta"):
        float32_bytes = 4 * sum(parameter.numel() for parameter in SamModel(config).parameters())
    assert float32_bytes > 370e6
    papers = tiny_recipe(bits="w4a4")
    assert stored_bytes(config, papers) <= float32_bytes / 6.8
    embeddings = tiny_recipe(bits="w4a4", extra={"position_embedding": 8, "patch_embedding": 8})
    assert stored_bytes(config, embeddings) <= float32_bytes / 7


# ---- damage


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def cut_by_one_byte(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def no_tensor_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"this is not a tensor file at all")


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-100] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def edit_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def edit_quantization(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return edit_config(lambda config: change(config["quantization_config"]))


TOKEN = "mask_decoder.iou_token.weight"
CODES = "vision_encoder.layers.0.attn.qkv.weight.codes"
ALTERED = r"the recipe or the configuration were altered: their content hash is [0-9a-f]{12}"

# Kind of damage -> (what does it, what the error says).
TENSOR_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in half": (cut, r"model\.safetensors cannot be read, it may be cut short"),
    "last byte missing": (cut_by_one_byte, r"model\.safetensors cannot be read, it may be cut short"),
    "empty": (empty, r"model\.safetensors cannot be read"),
    "another file": (no_tensor_file, r"model\.safetensors cannot be read"),
    "flipped bit": (flip_a_bit, ALTERED),
    "missing key": (edit_tensors(lambda t: t.pop(TOKEN)), f"does not fit its recipe: it lacks {TOKEN}"),
    "missing codes": (edit_tensors(lambda t: t.pop(CODES)), f"it lacks {CODES}"),
    "unknown key": (edit_tensors(lambda t: t.update(zz=torch.zeros(1))), "it has unknown zz"),
    "wrong shape": (
        edit_tensors(lambda t: t.update({TOKEN: t[TOKEN].reshape(32, 1)})),
        rf"{TOKEN} must have shape \(1, 32\), has \(32, 1\)",
    ),
    "wrong dtype": (
        edit_tensors(lambda t: t.update({TOKEN: t[TOKEN].float()})),
        f"{TOKEN} must be F16, is F32",
    ),
    "two tensors swapped": (
        edit_tensors(
            lambda t: t.update(
                {
                    "mask_decoder.upscale_conv1.bias": t["mask_decoder.upscale_layer_norm.bias"],
                    "mask_decoder.upscale_layer_norm.bias": t["mask_decoder.upscale_conv1.bias"],
                }
            )
        ),
        ALTERED,
    ),
}
CONFIG_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "newer format": (
        edit_quantization(lambda q: q.update(format_version=3)),
        "this checkpoint has format version 3; saqsam .* reads versions 1 to 2: install the version that wrote it",
    ),
    "no format": (edit_quantization(lambda q: q.pop("format_version")), "has format version None"),
    "no hash": (edit_quantization(lambda q: q.pop("content_sha256")), "config.json says None"),
    "other hash": (
        edit_quantization(lambda q: q.update(content_sha256="0" * 64)),
        "config.json says 000000000000",
    ),
    "no recipe": (edit_quantization(lambda q: q.pop("recipe")), "quantization_config has no recipe"),
    "recipe of another kind": (
        edit_quantization(lambda q: q.update(recipe=[])),
        r"quantization_config has no recipe, got \[\]",
    ),
    "unknown key": (edit_quantization(lambda q: q.update(color=1)), r"unknown keys: \['color'\]"),
    "other bits": (
        edit_quantization(lambda q: q["recipe"]["weights"].update(bits=5)),
        r"weight\.codes must have shape \(\d+,\), has \(\d+,\)",
    ),
    "other activation bits": (
        edit_quantization(lambda q: q["recipe"]["activations"].update(bits=5)),
        ALTERED,
    ),
    "bits out of range": (
        edit_quantization(lambda q: q["recipe"]["weights"].update(bits=16)),
        "bits must be an integer from 2 to 8, got 16",
    ),
    "a field that shapes no tensor": (
        edit_quantization(lambda q: q["recipe"].update(quantized_rel_pos_query=True)),
        ALTERED,
    ),
    "a field that names the method": (
        edit_quantization(lambda q: q["recipe"].update(method="best")),
        ALTERED,
    ),
    "another part packed": (
        edit_quantization(lambda q: q["recipe"].update(extra={"upscaling": 4})),
        r"it lacks mask_decoder\.upscale_conv1.* and has unknown mask_decoder\.upscale_conv1\.weight",
    ),
    "unknown recipe field": (
        edit_quantization(lambda q: q["recipe"].update(overides={})),
        "recipe has no field 'overides'; did you mean 'overrides'",
    ),
    "fewer blocks": (
        edit_config(lambda c: c["vision_config"].update(num_hidden_layers=3)),
        r"it has unknown vision_encoder\.layers\.3",
    ),
    "other width": (edit_config(lambda c: c["vision_config"].update(hidden_size=48)), "must have shape"),
}
# What transformers reports in its own way, or does not notice, when asked by itself.
FOLDER_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: expected JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object, got list"),
    "no tensors": (lambda folder: (folder / WEIGHTS).unlink(), r"model\.safetensors is missing"),
    "not quantized": (
        edit_config(lambda c: c.pop("quantization_config")),
        "is not a checkpoint of saqsam: expected quantization_config of 'saqsam' in its config.json, got None",
    ),
    "of another method": (
        edit_quantization(lambda q: q.update(quant_method="gptq")),
        "is not a checkpoint of saqsam",
    ),
    "no heads": (
        edit_config(lambda c: c["vision_config"].update(num_attention_heads=0)),
        r"config\.json: vision_config\.num_attention_heads: expected an integer from 1",
    ),
    "a width that is text": (
        edit_config(lambda c: c["vision_config"].update(hidden_size="32")),
        r"config\.json: vision_config\.hidden_size: expected an integer",
    ),
}


@both_loaders
@pytest.mark.parametrize("damage", TENSOR_DAMAGE)
def test_damaged_tensors_are_noticed(copy: Path, loader: Loader, damage: str) -> None:
    apply, message = TENSOR_DAMAGE[damage]
    apply(copy)
    with pytest.raises(ValueError, match=message):
        loader(copy)


@both_loaders
@pytest.mark.parametrize("damage", CONFIG_DAMAGE)
def test_an_altered_configuration_is_noticed(copy: Path, loader: Loader, damage: str) -> None:
    apply, message = CONFIG_DAMAGE[damage]
    apply(copy)
    with pytest.raises(ValueError, match=message):
        loader(copy)


@pytest.mark.parametrize(
    "damage", ["newer format", "no recipe", "bits out of range", "unknown recipe field", "unknown key"]
)
def test_what_is_wrong_with_a_configuration_is_said_with_its_file(copy: Path, damage: str) -> None:
    apply, message = CONFIG_DAMAGE[damage]
    apply(copy)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(copy))}/config\.json: .*{message}"):
        load_checkpoint(copy)


@pytest.mark.parametrize("damage", FOLDER_DAMAGE)
def test_a_folder_that_is_no_checkpoint_is_noticed(copy: Path, damage: str) -> None:
    apply, message = FOLDER_DAMAGE[damage]
    apply(copy)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(copy)
    with pytest.raises(ValueError, match="copy"):
        load(copy)


def test_the_copy_loads_undamaged(copy: Path) -> None:
    assert_same_outputs(load_checkpoint(copy), quantized_tiny())


def test_float_folders_and_missing_ones_are_no_checkpoints(tmp_path: Path) -> None:
    tiny_sam().save_pretrained(tmp_path / "float")
    with pytest.raises(ValueError, match="is not a checkpoint of saqsam"):
        load_checkpoint(tmp_path / "float")
    with pytest.raises(ValueError, match=r"nowhere.config\.json is missing"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_float_model_has_no_recipe_and_cannot_be_saved_as_a_checkpoint(tmp_path: Path) -> None:
    model = tiny_sam()
    assert quantization_config_of(model) is None
    with pytest.raises(ValueError, match="this model is float"):
        recipe_of(model)
    with pytest.raises(ValueError, match="this model is float"):
        save_checkpoint(model, tiny_processor(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_attaching_marks_a_model_as_transformers_does(saved: dict[str, Path]) -> None:
    loaded = from_pretrained(saved["plain"])
    model = tiny_sam()
    attach_quantizer(model, SaqsamConfig(tiny_recipe()))
    assert isinstance(model.config.quantization_config, SaqsamConfig)
    assert type(model.hf_quantizer) is type(loaded.hf_quantizer)
    assert model.quantization_method == loaded.quantization_method
    assert (model.is_quantized, model.hf_quantizer.is_trainable) == (True, False)
    with pytest.raises(ValueError, match="half"):
        model.half()


# ---- writing


def siblings(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def test_an_existing_folder_is_kept_without_overwrite(copy: Path) -> None:
    before = tree(copy)
    with pytest.raises(ValueError, match=r"copy exists; choose another name, or pass overwrite=True"):
        save_checkpoint(mixed_tiny(), tiny_processor(), copy)
    assert tree(copy) == before
    assert siblings(copy) == ["copy"]


def test_an_existing_checkpoint_is_replaced_with_overwrite(copy: Path) -> None:
    (copy / "left_over.txt").write_text("old")
    assert save_checkpoint(mixed_tiny(), tiny_processor(), copy, overwrite=True) == copy
    assert_same_outputs(load_checkpoint(copy), mixed_tiny())
    assert not (copy / "left_over.txt").exists()
    assert siblings(copy) == ["copy"]


def test_a_damaged_or_empty_checkpoint_is_replaced_with_overwrite(copy: Path, tmp_path: Path) -> None:
    cut(copy)
    (tmp_path / "nothing").mkdir()
    for folder in (copy, tmp_path / "nothing"):
        save_checkpoint(quantized_tiny(), tiny_processor(), folder, overwrite=True)
        assert_same_outputs(load_checkpoint(folder), quantized_tiny())


def photographs(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").write_bytes(b"precious")


def a_float_model(path: Path) -> None:
    tiny_sam().save_pretrained(path)


def a_file(path: Path) -> None:
    path.write_text("precious")


@pytest.mark.parametrize("make", [photographs, a_float_model, a_file])
def test_what_is_no_checkpoint_is_never_overwritten(tmp_path: Path, make: Callable[[Path], None]) -> None:
    target = tmp_path / "target"
    make(target)
    before = target.read_bytes() if target.is_file() else tree(target)
    with pytest.raises(ValueError, match="target is not a checkpoint of saqsam and is never overwritten"):
        save_checkpoint(quantized_tiny(), tiny_processor(), target, overwrite=True)
    assert (target.read_bytes() if target.is_file() else tree(target)) == before
    assert siblings(target) == ["target"]


def test_the_target_can_be_checked_beforehand(copy: Path, tmp_path: Path) -> None:
    check_target(tmp_path / "new", overwrite=False)
    check_target(copy, overwrite=True)
    with pytest.raises(ValueError, match="exists"):
        check_target(copy, overwrite=False)
    with pytest.raises(ValueError, match="never overwritten"):
        check_target(tmp_path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failing", ["save_file", "replace_folder"])
def test_a_crash_while_writing_leaves_what_was_there(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, failing: str
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(output if failing == "replace_folder" else checkpoint_folder, failing, crash)
    before = tree(copy)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(
            mixed_tiny(), tiny_processor(), copy if overwrite else tmp_path / "new", overwrite=overwrite
        )
    assert tree(copy) == before
    assert siblings(copy) == ["copy"]


def test_parents_are_made_and_others_may_read(tmp_path: Path) -> None:
    folder = save_checkpoint(quantized_tiny(), tiny_processor(), str(tmp_path / "a" / "b" / "model"))
    assert folder == tmp_path / "a" / "b" / "model"
    assert siblings(folder) == ["model"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert all(stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444 for file in folder.iterdir())
    assert sorted(tree(folder)) == ["README.md", "config.json", WEIGHTS, "processor_config.json"]


def test_saving_does_not_change_what_the_model_computes(tmp_path: Path) -> None:
    model = quantized_tiny()
    before = outputs(model)
    save_checkpoint(model, tiny_processor(), tmp_path / "out")
    after = outputs(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_refused_save_changes_nothing(tmp_path: Path, saved: dict[str, Path]) -> None:
    model = load_checkpoint(saved["plain"])
    known = copy_module.deepcopy(model.config.quantization_config.to_dict())
    next(module for module in model.modules() if hasattr(module, "zero_point")).scale.fill_(math.inf)
    with pytest.raises(saqsam.CheckpointError, match="finite"):
        save_checkpoint(model, tiny_processor(), tmp_path / "out")
    assert model.config.quantization_config.to_dict() == known


def test_a_loaded_model_tells_which_version_wrote_it(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["saqsam_version"] = "0.0.1"
    (copy / "config.json").write_text(json.dumps(config))
    for load in (load_checkpoint, from_pretrained):
        assert load(copy).config.quantization_config.saqsam_version == "0.0.1"


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save_checkpoint(quantized_tiny(), tiny_processor(), tmp_path / "model")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o640}
