"""Only a family's own folders name the modules of its models."""

import ast
from collections.abc import Iterator
from pathlib import Path

import saqsam

ROOT = Path(saqsam.__file__).parent
ALLOWED = (
    "models",
    *(f"export/{format_}/{family}" for format_ in ("onnx", "executorch") for family in ("sam", "mobile_sam")),
)
FORBIDDEN = {
    *("vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding", "shared_embedding"),
    *("vision_config", "prompt_encoder_config", "mask_decoder_config", "global_attn_indexes"),
    *("patch_embed", "pos_embed", "packed_pos_embed", "rel_pos_h", "rel_pos_w", "layer_norm1", "layer_norm2"),
    *("lin1", "lin2", "qkv", "q_proj", "k_proj", "v_proj", "out_proj", "self_attn"),
    *("cross_attn_token_to_image", "cross_attn_image_to_token", "final_attn_token_to_image"),
    *(
        "layer_norm_final_attn",
        "upscale_conv1",
        "upscale_conv2",
        "upscale_layer_norm",
        "iou_token",
        "mask_tokens",
    ),
    *("output_hypernetworks_mlps", "iou_prediction_head", "internal_dim"),
}
"""Module, parameter and configuration names of SAM v1 in transformers."""
CLASSES = {"SamModel", "SamConfig", "SamVisionAttention", "SamAttention"}
"""Classes that only a family instantiates or tells apart; annotations may name them."""


def names_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every name of a module that code, not documentation, mentions."""
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from ((node.lineno, word) for word in node.value.replace("/", ".").split("."))
        elif isinstance(node, ast.Call):
            called = [
                node.func,
                *(node.args if ast.unparse(node.func) in ("isinstance", "issubclass") else []),
            ]
            yield from ((node.lineno, n.id) for n in called if isinstance(n, ast.Name) and n.id in CLASSES)


def test_modules_of_a_family_are_named_in_its_folders_alone() -> None:
    violations = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT).as_posix()
        if not relative.startswith(ALLOWED):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            violations += [
                f"{relative}:{line}: {name}" for line, name in names_in(tree) if name in FORBIDDEN | CLASSES
            ]
    assert not violations, "\n".join(violations)
