"""The packed checkpoint, a folder that `SamModel.from_pretrained` loads after `import saqsam`; see *Checkpoint format*.

May import `convert`, `models`, `quant`, `recipes` and `utils`.
"""

from saqsam.checkpoint.config import FORMAT_VERSION, SaqsamConfig, quantization_config_of, recipe_of
from saqsam.checkpoint.folder import check_target, load_checkpoint, load_packed_folder, save_checkpoint
from saqsam.checkpoint.hashing import content_hash, hash_header, processor_hash
from saqsam.checkpoint.hf_quantizer import SaqsamQuantizer, attach_quantizer
from saqsam.checkpoint.model_card import CardScore, model_card
from saqsam.checkpoint.tensors import checkpoint_tensors, stored_layout
from saqsam.models.weights import SAFETENSORS as WEIGHTS

__all__ = [
    "FORMAT_VERSION",
    "WEIGHTS",
    "CardScore",
    "SaqsamConfig",
    "SaqsamQuantizer",
    "attach_quantizer",
    "check_target",
    "checkpoint_tensors",
    "content_hash",
    "hash_header",
    "load_checkpoint",
    "load_packed_folder",
    "model_card",
    "processor_hash",
    "quantization_config_of",
    "recipe_of",
    "save_checkpoint",
    "stored_layout",
]
