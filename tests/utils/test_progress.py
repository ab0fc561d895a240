"""One progress callback for the whole library."""

import ast
from pathlib import Path

import saqsam
from saqsam.utils.progress import renamed

ROOT = Path(saqsam.__file__).parent


def test_all_progress_callbacks_have_one_type() -> None:
    checked = 0
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for argument in [*node.args.args, *node.args.kwonlyargs]:
                if argument.arg == "progress":
                    assert argument.annotation is not None
                    kind = ast.unparse(argument.annotation)
                    assert kind in ("Progress", "Progress | None"), f"{path}:{node.lineno}: {kind}"
                    checked += 1
    assert checked > 10


def test_phases_are_reported_under_another_name() -> None:
    calls: list[tuple[object, ...]] = []
    report = renamed(lambda *step: calls.append(step), "comparing onnxruntime with torch")
    assert report is not None
    report("comparing with torch", 0, 4)
    report("comparing with torch", 1, 4, "remark")
    assert calls == [
        ("comparing onnxruntime with torch", 0, 4, ""),
        ("comparing onnxruntime with torch", 1, 4, "remark"),
    ]
    assert renamed(None, "anything") is None
