"""`load` from every source, and what it says about sources that are not right."""

import fnmatch
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3Config, SamModel

from saqsam.checkpoint import save_checkpoint
from saqsam.models import load, loading
from saqsam.models.building import build_model
from saqsam.models.processing import build_processor
from saqsam.utils.errors import CheckpointError
from support.state_dict_names import official_names
from support.tiny_quantized import assert_same_outputs, quantized_tiny
from support.tiny_sam import IMAGE_SIZE, tiny_config, tiny_pixels, tiny_processor, tiny_sam

SHARED = "shared_image_embedding.positional_embedding"
SHARED_COPY = "prompt_encoder.shared_embedding.positional_embedding"
SOME_KEY = "vision_encoder.layers.0.attn.qkv.bias"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_sam(seed=1).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved model that the test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def assert_same_model(model: SamModel, seed: int = 1) -> None:
    expected = tiny_sam(seed)
    assert not model.training
    for (name, value), (other, reference) in zip(
        model.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert name == other
        assert value.dtype == torch.float32
        assert torch.equal(value, reference), name
    pixels, box = tiny_pixels(), torch.tensor([[[5.0, 6.0, 40.0, 50.0]]])
    with torch.no_grad():
        ours = model(pixel_values=pixels, input_boxes=box)
        theirs = expected(pixel_values=pixels, input_boxes=box)
    assert torch.equal(ours.pred_masks, theirs.pred_masks)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# Folders


@pytest.mark.parametrize("kind", [str, Path])
def test_folder_of_transformers(saved: Path, kind: type) -> None:
    model, processor = load(kind(saved))
    assert_same_model(model)
    assert processor.target_size == IMAGE_SIZE
    inputs = processor(np.zeros((20, 40, 3), np.uint8), input_boxes=[[[1, 2, 30, 15]]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_nothing_is_printed(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(saved)
    assert capfd.readouterr() == ("", "")


def test_loaded_model_saves_and_loads_again(saved: Path, tmp_path: Path) -> None:
    model, processor = load(saved)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert_same_model(load(tmp_path)[0])
    for name, value in SamModel.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_weights_do_not_alias_the_file(folder: Path) -> None:
    model, _ = load(folder)
    (folder / "model.safetensors").write_bytes(bytes((folder / "model.safetensors").stat().st_size))
    assert_same_model(model)


def test_float16_is_loaded_as_float32(folder: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: value.half() for name, value in tensors.items()})

    edit_weights(folder, halve)
    edit_json(folder / "config.json", lambda config: config.update(dtype="float16"))
    model, _ = load(folder)
    assert model.dtype == model.config.dtype == torch.float32
    reference = tiny_sam(seed=1).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, reference[name].half().float()), name


def test_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-0000{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same_model(load(folder)[0])

    (folder / "model-00001.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00001\.safetensors is missing, which .* lists"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="weight_map"):
        load(folder)


@pytest.mark.parametrize("names", [(SHARED,), (SHARED_COPY,), (SHARED, SHARED_COPY)])
def test_position_encoding_under_either_name(folder: Path, names: tuple[str, ...]) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        value = tensors.pop(SHARED)
        tensors.update({name: value.clone() for name in names})

    edit_weights(folder, rename)
    model, _ = load(folder)
    assert_same_model(model)
    assert (
        model.prompt_encoder.shared_embedding.positional_embedding
        is model.shared_image_embedding.positional_embedding
    )


def test_two_different_position_encodings_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({SHARED_COPY: tensors[SHARED] + 1}))
    with pytest.raises(ValueError, match="to be equal"):
        load(folder)


def test_missing_unknown_and_misshapen_tensors_are_all_named(folder: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[SOME_KEY]
        tensors["foo.weight"] = torch.zeros(1)
        tensors["mask_decoder.iou_token.weight"] = torch.zeros((1, 5))

    edit_weights(folder, damage)
    with pytest.raises(ValueError, match="1 missing") as error:
        load(folder)
    assert SOME_KEY in str(error.value)
    assert "1 unknown: foo.weight" in str(error.value)
    assert "mask_decoder.iou_token.weight of shape (1, 5) instead of (1, 32)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weight_is_named(folder: Path, bad: float) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[SOME_KEY][3] = bad

    edit_weights(folder, damage)
    with pytest.raises(ValueError, match=f"{SOME_KEY} holds NaN or infinity"):
        load(folder)


def test_integer_tensor_is_refused(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({SOME_KEY: torch.zeros(96, dtype=torch.int32)}))
    with pytest.raises(ValueError, match=f"floating-point tensors, got others: {SOME_KEY}"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load(folder)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.sam."])
def test_pickled_weights_of_a_folder(folder: Path, prefix: str) -> None:
    (folder / "model.safetensors").unlink()
    state = {prefix + name: value for name, value in tiny_sam(seed=1).state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    assert_same_model(load(folder)[0])
    assert_same_model(load(folder / "pytorch_model.bin")[0])


def test_official_names_in_a_folder(folder: Path) -> None:
    """The configuration is the folder's: of what the official code fixes, nothing is assumed."""
    (folder / "model.safetensors").unlink()
    torch.save(official_names(tiny_sam(seed=1)), folder / "pytorch_model.bin")
    assert_same_model(load(folder)[0])


def test_safetensors_come_before_pickled_weights(folder: Path) -> None:
    torch.save({"broken": 1}, folder / "pytorch_model.bin")
    assert_same_model(load(folder)[0])


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_file_with_a_config_beside_it(folder: Path, suffix: str) -> None:
    path = folder / f"best{suffix}"
    state = {f"module.{name}": value.clone() for name, value in tiny_sam(seed=1).state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model_state_dict": state, "epoch": 3}, path)
    (folder / "model.safetensors").unlink()
    model, processor = load(path)
    assert_same_model(model)
    assert processor.target_size == IMAGE_SIZE


@pytest.mark.parametrize("content", ["{", '{"model_type": "llama", "quantization_config": {}}'])
def test_an_official_file_needs_no_config(tmp_path: Path, content: str) -> None:
    """Nor does another model's in the same folder matter."""
    config = tiny_config()
    config.mask_decoder_config.num_attention_heads = 8
    torch.save(official_names(tiny_sam(seed=1, config=config)), tmp_path / "sam.pth")
    (tmp_path / "config.json").write_text(content)
    assert load(tmp_path / "sam.pth")[0].config.mask_decoder_config.num_attention_heads == 8


def test_shards_stand_for_their_folder(tmp_path: Path) -> None:
    tiny_sam(seed=1).save_pretrained(tmp_path, max_shard_size="100KB")
    assert_same_model(load(tmp_path)[0])
    assert_same_model(load(max(tmp_path.glob("model-*.safetensors")))[0])


def test_the_file_of_a_checkpoint_stands_for_its_folder(tmp_path: Path) -> None:
    save_checkpoint(quantized_tiny(), tiny_processor(), tmp_path / "packed")
    assert_same_outputs(load(tmp_path / "packed" / "model.safetensors")[0], quantized_tiny())


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected model\.safetensors or pytorch_model\.bin, found none"):
        load(folder)


def test_oversize_file_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"expected a file of at most [\d,]+ bytes, got 1,099,511,627,776"):
        load(folder)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("\xff", "expected JSON"),
        ("[]", "JSON object, got list"),
        ("{}", "model_type one of 'sam', 'sam_hq', 'sam2', 'sam2_video', 'mobile_sam', .*, got None"),
        ('{"model_type": "sam3"}', "this is a SAM 3 checkpoint; saqsam supports SAM v1"),
        ('{"model_type": "sam2"}', "config.json describes a SAM 2, the tensors are those of a SAM"),
        ('{"model_type": "sam", "vision_config": 5}', "vision_config: expected a JSON object, got 5"),
        (
            '{"model_type": "sam", "vision_config": {"hidden_size": "wide"}}',
            "hidden_size: expected an integer",
        ),
        ('{"model_type": "sam", "vision_config": {"image_size": [64, 32]}}', "image_size"),
        ('{"model_type": "sam", "vision_config": {"patch_size": 0}}', "patch_size: expected an integer"),
        ('{"model_type": "sam", "mask_decoder_config": {"num_attention_heads": 7}}', "expected a divisor"),
    ],
)
def test_wrong_config(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_other_segment_anything_models_are_refused(tmp_path: Path) -> None:
    Sam3Config().save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"config\.json: this is a SAM 3 checkpoint; saqsam supports SAM v1"
    ):
        load(tmp_path)


# Processors


def test_processor_is_built_when_the_folder_has_none(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    built = load(folder)[1].image_processor
    own = tiny_processor().image_processor
    assert built.to_dict() == own.to_dict()
    image = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    ours, theirs = (p(image, return_tensors="pt")["pixel_values"] for p in (built, own))
    assert torch.equal(ours, theirs)


def test_built_processor_of_the_published_models() -> None:
    """The defaults of transformers' image processor are the published models' values."""
    config = tiny_config()
    config.vision_config.image_size, config.vision_config.patch_size = 1024, 16
    processor = build_processor(config).image_processor
    assert processor.to_dict() == type(processor)().to_dict()


def test_old_preprocessor_config_is_read(folder: Path) -> None:
    """Published repositories hold ``preprocessor_config.json``, flat, with the name of the class."""
    nested = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "processor_config.json").unlink()
    flat = nested | {"processor_class": "SamProcessor", "image_mean": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(flat))
    assert list(load(folder)[1].image_processor.image_mean) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("text", ["{", "{}", '{"image_processor": {"size": {"height": 3, "width": 3}}}'])
def test_unreadable_processor(folder: Path, text: str) -> None:
    (folder / "processor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"processor_config\.json"):
        load(folder)


def test_processor_of_another_size_is_refused(folder: Path) -> None:
    edit_json(
        folder / "processor_config.json", lambda c: c["image_processor"]["size"].update(longest_edge=48)
    )
    with pytest.raises(ValueError, match=r"expected images of 64 px.* got longest edge 48 padded to 64x64"):
        load(folder)


# Packed checkpoints


def test_packed_checkpoint_goes_to_its_loader(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = load(packed)
    assert_same_outputs(model, quantized_tiny())
    assert processor.target_size == IMAGE_SIZE
    asked = []

    def download(model_id: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(packed)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert_same_outputs(load("owner/packed")[0], quantized_tiny())
    (patterns,) = asked
    for file in ("config.json", "model.safetensors", "processor_config.json"):
        assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns), file


@pytest.mark.parametrize("value", [{"quant_method": "gptq"}, {}, "gptq"])
def test_models_quantized_by_others_are_refused(folder: Path, value: object) -> None:
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=value))
    with pytest.raises(ValueError, match="expected a float model, got one quantized by"):
        load(folder)


# Names


@pytest.mark.parametrize(
    "name", ["sam-mni", "no/such/folder", "./nosuch", "nosuch.pth", "a/nosuch.pth", "a\0b"]
)
def test_nothing_under_this_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"no model|null byte"):
        load(name)


def test_a_path_is_never_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "snapshot_download", None)
    with pytest.raises(
        ValueError, match="no model 'owner/name': not sam-mini or sam2-mini, no such file or folder"
    ):
        load(Path("owner/name"))


def test_bundled_model_without_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(loading, "bundled_folder", lambda _: folder)
    with pytest.raises(ValueError, match="this installation lacks the weights of sam-mini"):
        load("sam-mini")


def test_bundled_model_with_weights(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "bundled_folder", lambda _: saved)
    assert_same_model(load()[0])
    assert_same_model(load("sam-mini")[0])


def test_the_bundled_sam_2_is_small_and_finite() -> None:
    model, processor = load("sam2-mini")
    assert model.config.model_type == "sam2"
    assert processor.image_processor.size["height"] == 512
    assert sum(parameter.numel() for parameter in model.parameters()) < 8e6
    folders = [loading.bundled_folder(name) for name in loading.BUNDLED_MODELS]
    assert sum((folder / "model.safetensors").stat().st_size for folder in folders) < 32e6


def test_unknown_device(saved: Path) -> None:
    with pytest.raises(ValueError, match="not a device of torch: 'gpuu'"):
        load(saved, device="gpuu")


# The hub


def test_hub_repository(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(model_id: str, allow_patterns: list[str]) -> str:
        asked.append((model_id, allow_patterns))
        return str(saved)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert_same_model(load("facebook/sam-vit-base")[0])
    assert asked == [("facebook/sam-vit-base", ["*.json", "model*.safetensors"])]


def test_hub_repository_with_a_pickle_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    asked = []

    def download(model_id: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        if allow_patterns == ["pytorch_model.bin"]:
            torch.save(tiny_sam(seed=1).state_dict(), folder / "pytorch_model.bin")
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert_same_model(load("wanglab/medsam-vit-base")[0])
    assert len(asked) == 2

    torch.save({"state": [1]}, folder / "pytorch_model.bin")
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(ValueError, match="expected a state dict of tensors, got state"):
        load("wanglab/medsam-vit-base")


def test_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(model_id: str, allow_patterns: list[str]) -> str:
        raise OSError("ConnectError: no route\nand more")

    monkeypatch.setattr(loading, "snapshot_download", download)
    with pytest.raises(
        ValueError, match=r"no model 'owner/name': no such file or folder, and not .* hub"
    ) as error:
        load("owner/name")
    assert str(error.value).endswith("ConnectError: no route")


# Files


class Code:
    """Unpickles to a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.trace, "ran")


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle", "inside"])
def test_code_in_a_pth_never_runs(tmp_path: Path, how: str, recwarn: pytest.WarningsRecorder) -> None:
    trace, path = tmp_path / "trace", tmp_path / "sam_vit_b.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Code(trace)))
    else:
        content = {"model": tiny_sam().state_dict(), "extra": Code(trace)} if how == "inside" else Code(trace)
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(ValueError, match="would run code when loaded"):
        load(path)
    assert not trace.exists()
    assert not recwarn.list  # torch warns of pickle protocols in words for programmers


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"GIF89a", b"PK\x03\x04 not a zip", bytes(2000), b"\x80\x02}q\x00."]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sam_vit_b.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sam_vit_b\.pth: ") as error:
        load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated_pth(tmp_path: Path, share: float, legacy: bool) -> None:
    path = tmp_path / "sam_vit_b.pth"
    torch.save(tiny_sam().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"sam_vit_b\.pth: "):
        load(path)


def test_torchscript_archive_is_refused_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "sam.pt"
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(ValueError, match=r"sam\.pt: "):
        load(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": torch.zeros(1)}, {"model": 3}, torch.zeros(2)])
def test_pth_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"expected a state dict|expected the tensors of a Segment Anything"):
        load(tmp_path / "x.pth")


def test_single_file_of_transformers(saved: Path) -> None:
    assert_same_model(load(saved / "model.safetensors")[0])


def test_build_model_reports_its_source() -> None:
    with pytest.raises(ValueError, match=r"^here: .* missing"):
        build_model(tiny_config(), {}, source="here")
