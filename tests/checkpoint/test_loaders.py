"""One way to read a packed checkpoint: every loader reads each tensor once, and all read shards."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors
import torch
import transformers.modeling_utils
from safetensors.torch import load_file, save_file
from transformers import SamModel

import saqsam
from saqsam import CheckpointError
from saqsam.checkpoint import load_checkpoint, tensors
from support.tiny_quantized import assert_same_outputs, quantized_tiny
from support.tiny_sam import tiny_processor

Loader = Callable[[Path], SamModel]


def load(folder: Path) -> SamModel:
    return saqsam.load(folder)[0]


loaders = pytest.mark.parametrize("loader", [load, load_checkpoint, SamModel.from_pretrained])


class CountingFile:
    """Stand-in for `safe_open` that counts how often the data of each tensor is read."""

    reads: ClassVar[Counter[str]] = Counter()
    opens: ClassVar[Counter[str]] = Counter()

    def __init__(self, path: Any, *args: Any, **kwargs: Any) -> None:
        self.opens[Path(path).name] += 1
        self._file = safetensors.safe_open(path, *args, **kwargs)

    def __enter__(self) -> "CountingFile":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def get_tensor(self, name: str) -> torch.Tensor:
        self.reads[name] += 1
        return self._file.get_tensor(name)

    def get_slice(self, name: str) -> "CountingSlice":
        return CountingSlice(name, self._file.get_slice(name))


class CountingSlice:
    """Counts a read where the data is taken, not where shape and dtype are."""

    def __init__(self, name: str, part: Any) -> None:
        self._name, self._part = name, part

    def __getitem__(self, index: Any) -> torch.Tensor:
        CountingFile.reads[self._name] += 1
        return self._part[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


@loaders
def test_no_tensor_is_read_twice(packed: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingFile, "reads", Counter())
    monkeypatch.setattr(CountingFile, "opens", Counter())
    monkeypatch.setattr(tensors, "safe_open", CountingFile)
    monkeypatch.setattr(transformers.modeling_utils, "safe_open", CountingFile)
    assert_same_outputs(loader(packed), quantized_tiny())
    assert set(CountingFile.reads) == set(load_file(packed / "model.safetensors"))
    assert set(CountingFile.reads.values()) == {1}
    # transformers opens the file itself, after its header was checked
    assert CountingFile.opens["model.safetensors"] == (2 if loader == SamModel.from_pretrained else 1)


def test_each_configuration_is_read_once(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    read_bytes = Path.read_bytes

    def count(path: Path) -> bytes:
        reads[path.name] += 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", count)
    saqsam.load(packed)
    assert reads == {"config.json": 1, "processor_config.json": 1}


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    """The quantized tiny SAM in shards, with its processor."""
    load_checkpoint(packed).save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_processor().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    return tmp_path


@loaders
def test_shards_hold_the_same_model(shards: Path, loader: Loader) -> None:
    assert_same_outputs(loader(shards), quantized_tiny())


@loaders
def test_an_altered_shard_is_refused(shards: Path, loader: Loader) -> None:
    shard = sorted(shards.glob("model-*.safetensors"))[1]
    content = load_file(shard)
    name = next(name for name, tensor in content.items() if name.endswith(".codes"))
    content[name][0] ^= 1
    save_file(content, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="were altered"):
        loader(shards)


@loaders
def test_an_index_must_list_what_its_shards_hold(shards: Path, loader: Loader) -> None:
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    name = next(name for name, shard in index["weight_map"].items() if shard == first)
    index["weight_map"][name] = second
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"not those that the index lists") as error:
        loader(shards)
    assert "\n" not in str(error.value)


@loaders
def test_a_missing_shard_is_refused(shards: Path, loader: Loader) -> None:
    shard = sorted(shards.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        loader(shards)


@loaders
def test_a_tensor_in_two_shards_is_refused(shards: Path, loader: Loader) -> None:
    first, second = sorted(shards.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{second.name} repeats {name} of another shard"):
        loader(shards)


def test_a_hub_snapshot_without_processor_loads_in_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--name" / "snapshots" / "0123"
    processor = tiny_processor()
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    saqsam.save_checkpoint(copy.deepcopy(quantized_tiny()), processor, folder)
    (folder / "processor_config.json").unlink()
    assert_same_outputs(SamModel.from_pretrained(folder), quantized_tiny())
    plain = shutil.copytree(folder, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="got no file"):
        SamModel.from_pretrained(plain)


def test_one_public_loader() -> None:
    assert "load" in saqsam.__all__
    with pytest.raises(AttributeError, match=r"load_checkpoint'.*saqsam\.load returns \(model, processor\)"):
        saqsam.load_checkpoint  # type: ignore[attr-defined]  # noqa: B018
