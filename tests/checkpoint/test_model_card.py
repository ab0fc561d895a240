"""Model cards: written wherever a packed model is saved, with no score that was not given."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.hub
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import SamModel

import saqsam
from saqsam import SaqsamConfig
from saqsam.checkpoint import CardScore, model_card
from saqsam.recipes.specs import Override
from support.tiny_quantized import (
    assert_same_outputs,
    mixed_tiny,
    quantize_tiny,
    quantized_tiny,
    tiny_recipe,
)
from support.tiny_sam import tiny_processor, tiny_sam

SCORES = [
    CardScore("COCO val2017", "mean IoU, box prompts", 0.71234, 0.7011, 0.7249),
    CardScore("nuclei | split\n2", "mean IoU", 0.6),
]


@pytest.fixture
def model() -> SamModel:
    return copy.deepcopy(quantized_tiny())


def test_the_metadata_is_what_the_hub_reads(model: SamModel) -> None:
    metadata = yaml.safe_load(model_card(model).split("---")[1])
    assert metadata["library_name"] == "saqsam"
    assert metadata["pipeline_tag"] == "mask-generation"
    assert {"saqsam", "segment-anything", "quantized"} <= set(metadata["tags"])
    assert "license" not in metadata


def test_bits_and_sizes_are_those_of_the_model(model: SamModel, tiny: Path) -> None:
    card = model_card(model)
    assert "# SAM, quantized: min-max-w4a4" in card
    assert "| weights | 4 bits, one scale per output channel |" in card
    assert "| activations | 4 bits |" in card
    assert f"| parameters | {tiny_sam().num_parameters():,} |" in card
    assert "| iou_head | 8 bits |" in model_card(mixed_tiny())
    grouped = SamModel.from_pretrained(tiny, quantization_config=SaqsamConfig(weight_only="w4g32"))
    card = model_card(grouped)
    assert "| weights | 4 bits, one scale per group of 32 inputs |" in card
    assert "| activations | float |" in card


def test_scores_are_given_or_none(model: SamModel) -> None:
    assert "None were given" in model_card(model)
    card = model_card(model, SCORES, name="owner/name")
    assert "| COCO val2017 | mean IoU, box prompts | 0.7123 | 0.7011 to 0.7249 |" in card
    assert "| nuclei \\| split 2 | mean IoU | 0.6 | not computed |" in card
    assert "None were given" not in card
    assert 'saqsam.load("owner/name")' in card


SAVES: dict[str, Callable[[SamModel, Path], object]] = {
    "save_checkpoint": lambda model, folder: saqsam.save_checkpoint(model, tiny_processor(), folder),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder),
}


@pytest.mark.parametrize("save", SAVES)
def test_saving_writes_a_card(model: SamModel, save: str, tmp_path: Path) -> None:
    model.evaluation_scores = SCORES
    SAVES[save](model, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "0.7011 to 0.7249" in text
    assert model.config.quantization_config.content_sha256 in text
    assert_same_outputs(saqsam.load(tmp_path / "out")[0], model)


def test_a_card_written_by_hand_stays(model: SamModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    generated = card.read_text()
    model.evaluation_scores = SCORES
    model.save_pretrained(tmp_path)
    assert card.read_text() != generated
    card.write_text("# My own words\n")
    model.save_pretrained(tmp_path)
    assert card.read_text() == "# My own words\n"


class Hub:
    """Stand-in for the hub: keeps the files of one repository."""

    def __init__(self, card: str | None) -> None:
        self.card = card
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return type("Repository", (), {"repo_id": repo_id})

    def load_card(self, repo_id: str, **_: Any) -> ModelCard:
        if self.card is None:
            raise EntryNotFoundError("no README.md")
        return ModelCard(self.card)

    def create_commit(self, repo_id: str, operations: list[Any], **_: Any) -> str:
        for operation in operations:
            self.files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
        return repo_id


@pytest.mark.parametrize("card", [None, "# Edited on the hub\n"])
@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_pushing_uploads_the_card(
    model: SamModel, how: str, card: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(card)
    for module in (transformers.utils.hub, transformers.modeling_utils):
        monkeypatch.setattr(module, "hf_api", lambda: hub)
    monkeypatch.setattr(transformers.utils.hub.ModelCard, "load", hub.load_card)
    model.evaluation_scores = SCORES
    if how == "push_to_hub":
        model.push_to_hub("owner/name")
    else:
        model.save_pretrained(tmp_path, push_to_hub=True, repo_id="owner/name")
    assert {"README.md", "config.json", "model.safetensors"} <= hub.files.keys()
    text = hub.files["README.md"].decode()
    if card is None:
        assert 'saqsam.load("owner/name")' in text
        assert "0.7011 to 0.7249" in text
        assert "[More Information Needed]" not in text
    else:
        assert "# Edited on the hub" in text
        assert "quantized: min-max" not in text


def test_overrides_of_groups_show_both_widths() -> None:
    recipe = tiny_recipe(overrides={"decoder": Override(8, 8), "neck": Override(activations=6)})
    card = model_card(quantize_tiny(recipe))
    assert "| decoder | weights 8 bits, activations 8 bits |" in card
    assert "| neck | weights 4 bits, activations 6 bits |" in card
