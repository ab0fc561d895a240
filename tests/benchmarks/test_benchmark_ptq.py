from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import saqsam
from saqsam.evaluation import box_fill_iou
from support.script_modules import scripts
from support.tiny_sam import tiny_processor, tiny_sam


@pytest.fixture(scope="module")
def ptq() -> Iterator[ModuleType]:
    with scripts("benchmarks", ["ptq"]) as found:
        yield found["ptq"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sam().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(model_folder, tmp_path) -> list[str]:
    """One method at one width on one scene, with no photographs in reach."""
    return [
        *("--model", str(model_folder), "--methods", "fill-box", "float", "min-max", "--bits", "w4a4"),
        *("--data", "scenes", "--limit", "1", "--images", "1", "--data-root", str(tmp_path / "none")),
        *("--out", str(tmp_path / "rows.csv"), "--cache", str(tmp_path / "cache")),
    ]


def read(ptq, tmp_path):
    return ptq.read_rows(tmp_path / "rows.csv")


@pytest.mark.slow
def test_rows_are_of_the_checkpoint_on_disk(ptq, arguments, tmp_path):
    assert ptq.main(arguments) == 0
    box, plain, quantized = read(ptq, tmp_path)
    assert (box.method, box.model, box.recipe, box.prompt) == ("fill-box", "", "", "box")
    assert box.miou == pytest.approx(box_fill_iou(scenes()), abs=1e-6)
    assert (plain.method, plain.bits, plain.model, plain.calibration) == ("float", "w32a32", "tiny", "")
    assert (quantized.recipe, quantized.calibration, quantized.calibration_images) == (
        "min-max-w4a4",
        "scenes",
        1,
    )
    (folder,) = (path for path in (tmp_path / "cache" / "checkpoints").iterdir() if path.is_dir())
    result = saqsam.evaluate(*saqsam.load(folder), scenes())
    assert quantized.miou == pytest.approx(result.metrics["prompt"]["miou"], abs=1e-6)
    assert quantized.instances == plain.instances == box.instances == result.metrics["prompt"]["instances"]
    assert quantized.checkpoint_bytes == (folder / "model.safetensors").stat().st_size
    assert 0.5 < quantized.low_width_macs < 1
    with scripts("benchmarks", ["scores"]) as found:
        file = tmp_path / "scores" / f"tiny_{plain.model_hash}_float_w32a32_scenes_1_box.npz"
        ious, _ = found["scores"].read_scores(file)
    assert len(ious) == plain.instances
    assert ious.mean() == pytest.approx(plain.miou, abs=2e-5)


@pytest.mark.slow
def test_an_interrupted_run_resumes(ptq, arguments, tmp_path, monkeypatch):
    quantized, evaluated = [], []
    quantize, evaluate = saqsam.quantize, saqsam.evaluate

    def counting_quantize(*args, **kwargs):
        quantized.append(args)
        return quantize(*args, **kwargs)

    def stopping_evaluate(*args, **kwargs):
        if len(evaluated) == 1:
            raise KeyboardInterrupt
        evaluated.append(args)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(saqsam, "quantize", counting_quantize)
    monkeypatch.setattr(saqsam, "evaluate", stopping_evaluate)
    assert ptq.main(arguments) == 130
    first = read(ptq, tmp_path)
    assert [row.method for row in first] == ["fill-box", "float"]
    monkeypatch.setattr(saqsam, "evaluate", evaluate)
    assert ptq.main(arguments) == 0
    rows = read(ptq, tmp_path)
    assert rows[:2] == first
    assert [row.method for row in rows[2:]] == ["min-max"]
    assert len(quantized) == 1  # the checkpoint of the interrupted run is still good
    assert ptq.main(arguments) == 0
    assert read(ptq, tmp_path) == rows
    assert ptq.main([*arguments, "--seed", "1"]) == 0
    assert [row.seed for row in read(ptq, tmp_path)[3:]] == [1]
    assert len(quantized) == 2


def test_absent_data_is_skipped_and_said(ptq, arguments, tmp_path, capsys):
    assert ptq.main([*arguments, "--data", "scenes", "coco_val", "--methods", "fill-box"]) == 0
    assert "coco_val: skipped" in capsys.readouterr().err
    assert [row.data for row in read(ptq, tmp_path)] == ["scenes"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--bits", "w9a4"], "from 2 to 8"),
        (["--limit", "0"], "at least 1"),
        (["--calibration", "nowhere"], "no such folder"),
        (["--model", "nowhere"], "no weights in"),
    ],
)
def test_wrong_use_is_one_line(ptq, arguments, tmp_path, capsys, more, message):
    assert ptq.main([*arguments, *more]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error:") and message in line]
    assert not (tmp_path / "rows.csv").exists()


def scenes():
    return saqsam.open_dataset("scenes", limit=1)


@pytest.mark.parametrize(
    ("ending", "code"), [("os.kill(os.getpid(), signal.SIGKILL)", 137), ("sys.exit(2)", 2)]
)
def test_a_child_that_fails_or_is_killed_fails_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, code: int
) -> None:
    script = tmp_path / "child.py"
    script.write_text(f"import os, signal, sys\nif 'ends' in sys.argv:\n    {ending}\n")
    with scripts("benchmarks", ["methods"]) as found:
        methods = found["methods"]
        monkeypatch.setattr(methods.ptq, "__file__", str(script))
        assert methods.run_calls([["lives"], ["ends"], ["lives"]], 2) == code
        assert methods.run_calls([["lives"], ["lives"]], 2) == 0


def test_cached_files_are_of_the_same_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("1")
    with scripts("benchmarks", ["plan"]) as found:
        plan = found["plan"]
        first = plan.sources_hash(script)
        assert plan.sources_hash(script) == first != plan.sources_hash()
        script.write_text("2")
        assert plan.sources_hash(script) != first
        monkeypatch.setattr(plan.torch, "__version__", "0.0")
        assert plan.sources_hash() not in (first, plan.sources_hash(script))
