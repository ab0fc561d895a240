"""Files of weights: whole, in shards, damaged."""

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saqsam.models.weights import MAX_HEADER_BYTES, read_folder, read_safetensors, read_torch
from saqsam.utils.errors import CheckpointError
from support.tiny_sam import tiny_sam


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_sam(seed=1).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


def edit_index(folder: Path, **changes: object) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"].update(changes)
    path.write_text(json.dumps(index))


def test_shards_hold_what_one_file_holds(sharded: Path, tmp_path: Path) -> None:
    tiny_sam(seed=1).save_pretrained(tmp_path / "whole")
    whole, parts = read_folder(tmp_path / "whole"), read_folder(sharded)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_pickled_shards(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    for number, name in enumerate(tensors):
        torch.save({name: tensors[name]}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    weight_map = {"a": "pytorch_model-00000-of-00002.bin", "b": "pytorch_model-00001-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = read_folder(tmp_path)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd",
        "x.bin",
        "",
        3,
        None,
        "a" * 10**6,
        ".safetensors",
        "a\0b",
    ],
)
def test_an_index_cannot_leave_its_folder(sharded: Path, name: object) -> None:
    edit_index(sharded, **{"mask_decoder.iou_token.weight": name})
    with pytest.raises(
        CheckpointError, match=r"index\.json: expected a weight_map of \.safetensors files"
    ) as error:
        read_folder(sharded)
    assert len(str(error.value)) < 300


def test_an_index_must_tell_what_its_shards_hold(sharded: Path) -> None:
    edit_index(sharded, unknown="model-00001-of-00005.safetensors")
    first = min(path.name for path in sharded.glob("model-*.safetensors"))
    edit_index(sharded, unknown=first)
    with pytest.raises(CheckpointError, match=f"{first}: its tensors are not those that .* lists: unknown"):
        read_folder(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    extra = dict(list(load_file(first).items())[:1])
    save_file(load_file(second) | extra, second)
    with pytest.raises(CheckpointError, match="its tensors are not those"):
        read_folder(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = max(sharded.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        read_folder(sharded)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{", "[" * 10**5]
)
def test_index_of_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json: expected"):
        read_folder(tmp_path)


def test_all_shards_together_are_limited(sharded: Path) -> None:
    total = sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    read_folder(sharded, max_bytes=total)
    with pytest.raises(CheckpointError, match="expected a file of at most"):
        read_folder(sharded, max_bytes=total - 1)


def header(content: object, data: int = 8) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(100),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}),
        header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}),
        header({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}),  # overlapping
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}),  # a hole
        header([]),
        header({"a": []}),
        struct.pack("<Q", 10**5) + b"[" * 10**5,
    ],
)
def test_damaged_headers(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: not a complete safetensors file"
    ) as error:
        read_safetensors(path)
    assert "\n" not in str(error.value)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """A pickle of zeros could be unpacked to a thousand times its size."""
    torch.save({"a": torch.zeros(10)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    assert read_torch(tmp_path / "a.pth").keys() == {"a"}
    with pytest.raises(
        CheckpointError, match=r"expected an archive written by torch\.save, got a compressed one"
    ):
        read_torch(tmp_path / "b.pth")


def test_tensors_of_a_file_have_mappings_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"one": torch.zeros(3), "two": torch.ones(4)}, path)
    tensors = read_safetensors(path)
    assert tensors["one"].equal(torch.zeros(3))
    assert tensors["two"].equal(torch.ones(4))
    # Dropping one lets its pages go.
    assert tensors["one"].untyped_storage().data_ptr() != tensors["two"].untyped_storage().data_ptr()
