import argparse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support.script_modules import scripts


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with scripts("benchmarks", ["latency", "latency_models", "other_tables"]) as found:
        yield found


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"runtimes": ["openvino"], "variants": None, "parts": ["decoder"], **changes})


def test_what_is_chosen_always_has_what_it_is_compared_with(modules) -> None:
    latency = modules["latency"]
    found = latency.chosen_cases("sam-mini", options(variants=["nncf", "w4a8"]))
    assert [(case.part, case.prompts, case.runtime, case.variant) for case in found] == [
        ("decoder", prompts, runtime, variant)
        for prompts in (1, 32)
        for runtime, variant in (("onnxruntime", "default"), ("openvino", "nncf"), ("openvino", "w4a8"))
    ]


@pytest.mark.parametrize("subject", ["sam-mini", "sam-b"])
def test_every_case_has_a_name_in_the_table_and_a_file_of_its_own(modules, subject: str) -> None:
    latency, models, tables = (modules[name] for name in ("latency", "latency_models", "other_tables"))
    every = list(latency.cases(subject))
    assert len(set(every)) == len(every)
    folder = Path("folder")
    files: dict[Path, set[tuple[str, int, str]]] = {}
    for case in every:
        assert case.runtime in tables._RUNTIMES
        assert case.variant in tables._VARIANTS or models.recipe_of_variant(case.variant).integer_biases
        path = models.file_of(folder, case)
        assert (path is None) == case.runtime.startswith("torch")
        if path is not None:
            # Only saqsam's own decoder takes any number of prompts.
            prompts = case.prompts if case.variant in models.BUILT_IN else 0
            files.setdefault(path, set()).add((case.part, prompts, case.variant))
    assert all(len(owners) == 1 for owners in files.values())


def test_a_model_of_openvino_is_as_large_as_both_of_its_files(modules, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(b"12")
    (tmp_path / "a.bin").write_bytes(b"345")
    (tmp_path / "a.onnx").write_bytes(b"1")
    sizes = modules["latency_models"].file_bytes
    assert (sizes(tmp_path / "a.xml"), sizes(tmp_path / "a.onnx")) == (5, 1)
