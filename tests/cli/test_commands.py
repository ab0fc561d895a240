import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from transformers.utils import logging
from typer.testing import Result

import saqsam
from saqsam.checkpoint import folder as checkpoint_folder
from saqsam.checkpoint import load_checkpoint, save_checkpoint
from saqsam.cli import library, result_tables, terminal
from saqsam.cli.guard import guarded
from saqsam.data.images import read_image
from saqsam.ptq import reconstruction as reconstruct
from saqsam.quant.layers import PackedLinear
from saqsam.recipes.deployment import deployable
from saqsam.runtimes import torch_integer
from support.ade_folder import make_ade
from support.coco_folder import good_annotations, make_coco, picture
from support.command_line import assert_done, assert_refused, run
from support.dota_folder import make_dota
from support.tiny_quantized import assert_same_outputs, quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_processor, tiny_sam

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images without annotations."""
    folder = tmp_path_factory.mktemp("data") / "bare"
    folder.mkdir()
    for seed in range(2):
        Image.fromarray(picture((40, 60), seed)).save(folder / f"{seed}.png")
    return folder


def quantize(model: Path, out: Path, *more: str | Path) -> Result:
    return run(
        "quantize", model, "--out", out, "--images", "2", "--check", "none", "--method", "min-max", *more
    )


# --- the program as a whole


def test_version() -> None:
    result = run("--version")
    assert_done(result)
    assert result.stdout == f"saqsam {saqsam.__version__}\n"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ((), ["quantize", "evaluate", "segment", "inspect", "--version"]),
        (
            ("quantize",),
            [
                *("MODEL", "--out", "--method", "--bits", "--calibration", "--images", "--seed", "--device"),
                *("--overwrite", "sam-mini", "min-max", "w4a4", "scenes", "auto"),
            ],
        ),
        (("evaluate",), ["MODEL", "--data", "--prompt", "--detections", "--limit", "--json", "box"]),
        (("segment",), ["MODEL", "IMAGE", "--box", "--point", "--out"]),
        (("inspect",), ["DIR", "--json"]),
    ],
)
def test_help_names_everything_within_80_columns(command: tuple[str, ...], options: list[str]) -> None:
    result = run(*command, "--help")
    assert_done(result)
    for option in options:
        assert option in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout
    assert "`" not in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize"],
        ["quantize", "--out", "x", "--images", "0"],
        ["quantize", "--out", "x", "--images", "many"],
        ["quantize", "--out", "x", "--seed", "-1"],
        ["evaluate", "--limit", "0"],
        ["evaluate", "--limit", str(10**20)],
        ["evaluate", "--workers", "100000"],
        ["evaluate", "--threads", "100000"],
        ["quantize", "--out", "x", "--seed", str(2**53)],
        ["quantize", "--out", "x", "--steps", str(10**20)],
        ["evaluate", "--points-per-side", "0"],
        ["evaluate", "--pred-iou", "1.5"],
        ["evaluate", "--stability", "high"],
        ["evaluate", "--color", "red"],
        ["segment", "sam-mini"],
        ["inspect"],
        ["compress"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_messages_are_one_line_and_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def fail() -> None:
        warnings.warn("of\n[bold]this[/bold] :smile:", stacklevel=1)
        warnings.warn("for programmers", DeprecationWarning, stacklevel=1)
        raise ValueError("no [red]color[/red]:\n  [/] " + "long " * 50)

    with pytest.raises(typer.Exit) as caught:
        fail()
    assert caught.value.exit_code == 2
    expected = "error: no [red]color[/red]: [/] " + ("long " * 50).strip()
    assert capsys.readouterr().err.splitlines() == ["note: of [bold]this[/bold] :smile:", expected]


def test_errors_of_the_operating_system_name_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def fail() -> None:
        raise PermissionError(13, "Permission denied", "/some/[file]")

    with pytest.raises(typer.Exit):
        fail()
    assert capsys.readouterr().err == "error: /some/[file]: Permission denied\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("too many pixels"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
)
def test_lack_of_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        fail()
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == f"error: not enough memory: {error}\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RecursionError("maximum recursion depth exceeded"), "the input is nested too deeply"),
        (RuntimeError("write failed: No space left on device"), "write failed: No space left on device"),
        (OSError("3 requested and 0 written"), "3 requested and 0 written"),
        (ValueError("x" * 100_000), "x" * 1997 + "..."),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
            "'utf-8' codec can't decode byte 0xff in position 0: bad",
        ),
    ],
)
def test_what_input_and_machine_explain_is_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @guarded
    def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        fail()
    assert caught.value.exit_code == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_sigterm_is_an_interruption_and_its_handler_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def fail() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            second.append(signal.getsignal(signal.SIGTERM))

    before, second = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(typer.Exit) as caught:
        fail()
    assert caught.value.exit_code == 143
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == before
    assert second == [before]  # a second signal does not wait for the cleanup


@pytest.mark.slow
def test_a_closed_pipe_ends_a_command_quietly(packed: Path, tmp_path: Path) -> None:
    running = start("-m", "saqsam", "evaluate", packed, "--limit", "1", "--json", tmp_path / "a.json")
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    stderr = running.stderr.read()
    running.stderr.close()
    assert running.wait(timeout=60) == 1
    assert "Traceback" not in stderr
    assert "error" not in stderr
    assert json.loads((tmp_path / "a.json").read_text())["images"] == 1


def test_defects_of_our_own_are_not_hidden() -> None:
    @guarded
    def fail() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        fail()


def test_what_transformers_logs_is_silenced_while_a_command_runs_and_no_longer() -> None:
    def settings() -> tuple[int, bool]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled()

    before, inside = settings(), []

    @library.quiet_transformers()
    def fail() -> None:
        inside.append(settings())
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert inside == [(logging.ERROR, False)]
    assert settings() == before


# --- quantize


@pytest.mark.slow
def test_quantize_compares_float_with_what_is_on_disk(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "q"
    result = run("quantize", tiny, "--out", out, "--images", "2", "--check-images", "2", "--steps", "1")
    assert_done(result)
    reloaded, processor = saqsam.load(out)
    assert saqsam.recipe_of(reloaded).name == "saq-sam-plus-w4a4"
    assert saqsam.recipe_of(reloaded).calibration.images == 2
    data = saqsam.open_dataset("scenes", limit=2)
    before = saqsam.evaluate(*saqsam.load(tiny), data).metrics["prompt"]
    after = saqsam.evaluate(reloaded, processor, data).metrics["prompt"]["miou"]
    scores = next(line for line in result.stdout.splitlines() if line.startswith("mean IoU"))
    assert scores.split()[-3:] == [
        f"{before['miou']:.4f}",
        f"{after:.4f}",
        f"{after - before['miou']:+.4f}",
    ]
    assert f"{before['instances']} objects in 2 images of scenes" in result.stdout
    assert f"{(out / 'model.safetensors').stat().st_size / 1e6:.2f} MB" in result.stdout
    lines = result.stdout.splitlines()
    assert lines[0] == f"checkpoint: {out}"
    assert lines[-1] == f"picture: {out / 'comparison.png'}"
    assert read_image(out / "comparison.png").shape[1] > 4 * 300
    assert not list(out.parent.glob(".*")) + list(out.glob(".*"))
    assert "calibrated on 2 images (seed 0) of scenes, " in lines[1]
    # A line at the start and one at the end of each phase, and the first estimate of the whole.
    assert result.stderr.startswith("effort: standard (w4a4: ")
    log = [line.rpartition(": ") for line in result.stderr.splitlines()]
    assert not re.search(r"[\x00-\x09\x0b-\x1f━]", result.stderr)
    assert [name for name, _, what in log if what.endswith(" s")] == [
        f"loading {tiny}",
        "scoring, float",
        *("choosing prompts", "equalizing channels", "balancing heads"),
        *("calibrating", "activation ranges", "clipping attentions"),
        *("compensating", "1/1 whole decoder", "packing weights"),
        *("writing the checkpoint", "reading the checkpoint back", "scoring, quantized"),
        *("drawing the comparison", "writing the report"),
    ]
    assert ("calibrating", ": ", "2 images") in log
    assert re.fullmatch(r"2 images in \d+(\.\d)? s", log[log.index(("calibrating", ": ", "2 images")) + 1][2])


def test_the_result_depends_on_model_and_options_alone(tiny: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert_done(quantize(tiny, tmp_path / name, "--seed", seed))
    assert_same_outputs(load_checkpoint(tmp_path / "a"), load_checkpoint(tmp_path / "b"))
    tensors = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert tensors[0] == tensors[1] != tensors[2]


def test_no_check_writes_no_picture(tiny: Path, tmp_path: Path) -> None:
    result = quantize(tiny, tmp_path / "q", "--bits", "w8a6")
    assert_done(result)
    assert "min-max-w8a6" in result.stdout
    assert "mean IoU" not in result.stdout
    assert "picture" not in result.stdout
    assert not (tmp_path / "q" / "comparison.png").exists()


def test_check_on_annotated_photographs(tiny: Path, labeled: Path, tmp_path: Path) -> None:
    result = quantize(tiny, tmp_path / "q", "--check", labeled, "--calibration", labeled)
    assert_done(result)
    assert "3 objects in 2 images of coco" in result.stdout  # the crowd is not one of them
    assert (tmp_path / "q" / "comparison.png").is_file()


def test_a_bare_folder_calibrates_on_what_it_has(tiny: Path, bare: Path, tmp_path: Path) -> None:
    result = quantize(tiny, tmp_path / "q", "--calibration", bare, "--images", "5")
    assert_done(result)
    assert "note: the calibration set has 2 images, fewer than the recipe's 5" in result.stderr.splitlines()


def test_scenes_are_as_many_as_asked_for(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(model: Any, processor: Any, recipe: Any, data: Any, **_: Any) -> None:
        seen.append((recipe.calibration.images, len(data)))
        raise ValueError("far enough")

    monkeypatch.setattr(saqsam, "quantize", stop)
    assert_refused(quantize(tiny, tmp_path / "q", "--images", "150"), "far enough")
    assert_refused(quantize(tiny, tmp_path / "q"), "far enough")
    assert seen == [(150, 150), (2, 100)]


def test_an_existing_out_is_kept_and_said_so_before_any_work(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "[out]"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    # The model does not exist either: that would be found out later.
    assert_refused(quantize(tmp_path / "missing", out), str(out), "exists", "--overwrite")
    assert_refused(quantize(tmp_path / "missing", out, "--overwrite"), "not a checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["[out]"]
    assert (out / "thesis.txt").read_text() == "precious"


def test_overwrite_replaces_a_checkpoint(tiny: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    shutil.copytree(packed, out)
    before = (out / "model.safetensors").read_bytes()
    assert_refused(quantize(tiny, out, "--bits", "w8a8"), "exists")
    assert (out / "model.safetensors").read_bytes() == before
    assert_done(quantize(tiny, out, "--bits", "w8a8", "--overwrite"))
    assert saqsam.recipe_of(load_checkpoint(out)).name == "min-max-w8a8"
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "minmax"], ["minmax", "min-max"]),
        (["--bits", "w9a4"], ["9"]),
        (["--bits", "4"], ["w4a4", "'4'"]),
        (["--calibration", "nowhere"], ["nowhere"]),
        (["--check", "nowhere"], ["nowhere"]),
        (["--effort", "standart"], ["standart", "did you mean 'standard'"]),
        (["--effort", "atuo"], ["atuo", "did you mean 'auto'"]),
        (["--steps", "5"], ["--steps: min-max learns nothing"]),
        (["--set", "clippin=none"], ["clippin", "did you mean 'clipping'"]),
        (["--set", "clipping.theta=0.4"], ["this method has no clipping"]),
        (["--set", "weights.bits=99"], ["99"]),
        (["--memory", "much"], ["4GiB", "'much'"]),
        (["--detections", "nowhere.json"], ["a dataset in COCO format or DOTA's"]),
        (["--device", "abacus"], ["--device abacus"]),
        (["--device", "meta"], ["--device meta"]),
    ],
)
def test_wrong_options_are_refused(
    tiny: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(quantize(tiny, tmp_path / "q", *arguments), *words)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_refused(tiny: Path, tmp_path: Path) -> None:
    assert_refused(quantize(tiny, tmp_path / "q", "--device", "cuda"), "--device cuda cannot be used")


def test_unusable_models_and_data_are_refused(tiny: Path, packed: Path, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "q"
    assert_refused(quantize(tmp_path / "nothing", out), "nothing")
    assert_refused(quantize(packed, out), "quantized already")
    assert_refused(quantize(tiny, out, "--check", bare), "--check", "without annotations")
    (tmp_path / "file").touch()
    assert_refused(quantize(tiny, tmp_path / "file" / "q"), "file is not a folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(quantize(tiny, out, "--calibration", empty), "empty", "images")
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    (truncated / "0.png").write_bytes((bare / "0.png").read_bytes()[:200])
    assert_refused(quantize(tiny, out, "--calibration", truncated), "0.png")
    assert not out.parent.exists()


def test_nan_in_the_weights_is_refused(tmp_path: Path) -> None:
    model = tiny_sam()
    with torch.no_grad():
        model.vision_encoder.layers[0].mlp.lin1.weight[3, 5] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tiny_processor().save_pretrained(tmp_path / "nan")
    assert_refused(quantize(tmp_path / "nan", tmp_path / "q"), "lin1.weight", "NaN")
    assert not (tmp_path / "q").exists()


def test_check_data_is_read_before_the_long_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_coco(tmp_path / "coco", annotations=[])
    monkeypatch.setattr(saqsam, "quantize", lambda *_, **__: pytest.fail("quantized first"))
    assert_refused(quantize(tiny, tmp_path / "q", "--check", data), "expected instances")


@pytest.mark.parametrize("where", ["calibrating", "writing"])
def test_an_interrupt_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupt(*arguments: Any, **_: Any) -> None:
        if where == "writing":
            Path(arguments[1]).write_bytes(b"half of")
        signal.raise_signal(signal.SIGINT)

    owner, name = (saqsam, "quantize") if where == "calibrating" else (checkpoint_folder, "save_file")
    monkeypatch.setattr(owner, name, interrupt)
    result = quantize(tiny, tmp_path / "out" / "q")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].split("; ")[0] == "interrupted"
    assert result.stdout == ""
    # Once the ranges are set, they are kept for the next try.
    kept = tmp_path / "out" / "q.unfinished"
    assert list(tmp_path.glob("out/*")) == ([kept] if where == "writing" else [])
    assert (f"finished steps are kept in {kept}" in result.stderr) == (where == "writing")


def test_an_interrupted_overwrite_keeps_the_old_checkpoint(
    tiny: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(packed, tmp_path / "q")
    monkeypatch.setattr(checkpoint_folder, "save_file", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert quantize(tiny, tmp_path / "q", "--overwrite").exit_code == 130
    assert_same_outputs(load_checkpoint(tmp_path / "q"), load_checkpoint(packed))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q", "q.unfinished"]


def test_a_failure_after_writing_keeps_the_finished_steps(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "comparison.png")

    arguments = ("--check", "scenes", "--check-images", "1")
    with monkeypatch.context() as patch:
        patch.setattr("saqsam.cli.commands.quantize.write_png", full)
        result = quantize(tiny, tmp_path / "q", *arguments)
    kept = tmp_path / "q.unfinished"
    assert_refused(
        result,
        "comparison.png: No space left on device",
        "was not written",
        f"finished steps are kept in {kept}",
    )
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.unfinished"]
    assert sorted(path.name for path in kept.iterdir()) == ["arguments.json", "ranges.safetensors"]
    assert_done(quantize(tiny, tmp_path / "q", *arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


LEARN = ("--method", "saq-sam", "--bits", "w3a4", "--steps", "3", "--set", "reconstruction.final_steps=1")


@pytest.mark.slow
def test_learning_goes_on_where_it_stopped_and_leaves_its_log(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        original = reconstruct.learn_unit

        def until_the_neck(model: Any, reference: Any, unit: Any, *more: Any, **named: Any) -> Any:
            if unit.name == "neck":
                signal.raise_signal(signal.SIGINT)
            return original(model, reference, unit, *more, **named)

        patch.setattr(reconstruct, "learn_unit", until_the_neck)
        result = quantize(tiny, tmp_path / "q", *LEARN)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        f"interrupted; finished steps are kept in {tmp_path / 'q.unfinished'}; run the same command again to resume"
    )
    other = quantize(tiny, tmp_path / "q", *LEARN, "--seed", "1")
    assert_refused(other, "unfinished run with another calibration data, recipe", "finished steps are kept")
    assert "to resume" not in other.stderr
    result = quantize(tiny, tmp_path / "q", *LEARN)
    assert_done(result)
    assert "encoder stage" not in result.stderr, "finished units are not learned again"
    assert "3/6 neck" in result.stderr
    assert_done(quantize(tiny, tmp_path / "whole", *LEARN))
    name = "model.safetensors"
    assert (tmp_path / "q" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q", "whole"]
    log = json.loads((tmp_path / "q" / "quantization.json").read_text())
    assert log == json.loads((tmp_path / "whole" / "quantization.json").read_text())
    assert [len(unit["losses"]) for unit in log["units"]] == [3] * 6
    assert len(log["clipping"]) == 7
    assert log["recipe"]["method"] == "saq-sam-custom"
    with Image.open(tmp_path / "q" / "quantization.png") as drawn:
        assert drawn.size[0] > 800


def test_settings_and_the_deployable_variant_are_in_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    assert_done(quantize(tiny, tmp_path / "a", "--set", "weights.symmetric=true", "--set", "bimodal=true"))
    recipe = saqsam.recipe_of(load_checkpoint(tmp_path / "a"))
    assert (recipe.method, recipe.weights.symmetric, recipe.bimodal) == ("min-max-custom", True, True)
    done = quantize(tiny, tmp_path / "b", "--deploy")
    assert_done(done)
    assert "  weights.symmetric_bytes: true (the method: false); " in done.stdout
    recipe = saqsam.recipe_of(load_checkpoint(tmp_path / "b"))
    assert recipe.weights.symmetric_bytes
    assert (recipe.probabilities.kind, recipe.probabilities.bits) == ("uniform", 8)
    assert recipe.name == "min-max-deploy-w4a4-mixed"


@pytest.mark.parametrize(
    ("arguments", "gelu"),
    [
        (("--method", "adalog", "--deploy"), "log"),
        (("--method", "ahcptq-s", "--bits", "w4a8", "--deploy-for", "executorch"), "hybrid"),
        (("--deploy", "--set", "gelu=hybrid"), "hybrid"),
    ],
)
def test_tables_of_levels_are_refused_with_deploy(
    tiny: Path, tmp_path: Path, arguments: tuple[str, ...], gelu: str
) -> None:
    done = quantize(tiny, tmp_path / "out", *arguments)
    assert_refused(done, "multiplies uniform codes alone", f"gelu={gelu}")
    assert not list(tmp_path.iterdir())


def test_a_detector_s_boxes_are_the_prompts(tiny: Path, labeled: Path, tmp_path: Path) -> None:
    boxes = labeled / "found.json"
    content = json.loads((labeled / "annotations.json").read_text())
    found = [
        {
            "image_id": image["id"],
            "category_id": content["categories"][0]["id"],
            "bbox": [2, 3, 20, 15],
            "score": 0.9,
        }
        for image in content["images"]
    ]
    boxes.write_text(json.dumps(found))
    for name, more in (("own", ()), ("found", ("--detections", boxes))):
        assert_done(quantize(tiny, tmp_path / name, "--calibration", labeled, *more))
    tensors = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("own", "found")]
    assert tensors[0] != tensors[1]


# --- evaluate


def test_evaluate_is_deterministic_and_writes_its_figures(packed: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = run("evaluate", packed, "--limit", "2", "--json", tmp_path / "new" / f"{name}.json")
        assert_done(result)
    assert (tmp_path / "new/a.json").read_bytes() == (tmp_path / "new/b.json").read_bytes()
    figures = json.loads((tmp_path / "new/a.json").read_text())
    expected = saqsam.evaluate(*saqsam.load(packed), saqsam.open_dataset("scenes", limit=2)).metrics["prompt"]
    assert figures["tasks"]["prompt"]["metrics"]["miou"] == expected["miou"]
    scored = [found for record in figures["records"] for found in record["prompt"]["instances"]]
    assert figures["tasks"]["prompt"]["metrics"]["instances"] == expected["instances"] == len(scored)
    assert not (tmp_path / "new/a.json.unfinished").exists()
    assert (figures["model"], figures["recipe"], figures["dataset"]) == (
        str(packed),
        "min-max-w4a4",
        "scenes",
    )
    assert sum(figures["share_of_macs"].values()) == pytest.approx(1)
    assert sum(figures["share_of_bytes"].values()) == pytest.approx(1)
    assert figures["tasks"].keys() == {"prompt"}
    assert f"{expected['miou']:.4f}" in result.stdout
    assert "MACs" in result.stdout


def test_evaluate_on_torch_s_integers_says_how_fast_that_is(
    packed: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.5, 0.25, 0.2, 0.8] * 10)  # encoder and decoder, quantized before float
    monkeypatch.setattr(torch_integer, "_run_once", lambda *_: (next(times), next(times)))
    result = run("evaluate", packed, "--limit", "1", "--runtime", "torch-int8", "--json", tmp_path / "i.json")
    assert_done(result)
    figures = json.loads((tmp_path / "i.json").read_text())
    layers = figures["integer_layers"]
    total = sum(isinstance(layer, PackedLinear) for layer in load_checkpoint(packed).modules())
    assert layers["integer"] + sum(layers["dequantized"].values()) == total
    assert f"{layers['integer']} of {total} quantized linear layers" in result.stdout
    assert figures["speed"]["encoder"]["ratio"] == pytest.approx(0.4)
    assert figures["speed"]["decoder"]["ratio"] == pytest.approx(3.2)
    assert "slower than float here: encoder;" in result.stdout
    plain = saqsam.evaluate(*saqsam.load(packed), saqsam.open_dataset("scenes", limit=1))
    assert figures["tasks"]["prompt"]["metrics"]["miou"] == pytest.approx(
        plain.metrics["prompt"]["miou"], abs=0.05
    )
    assert_refused(run("evaluate", tiny, "--runtime", "torch-int8"), "is float")


def test_evaluate_a_float_model_with_points(tiny: Path, labeled: Path, tmp_path: Path) -> None:
    result = run("evaluate", tiny, "--data", labeled, "--prompt", "point", "--json", tmp_path / "p.json")
    assert_done(result)
    figures = json.loads((tmp_path / "p.json").read_text())
    prompt = figures["tasks"]["prompt"]
    assert (figures["recipe"], prompt["options"]["prompt"], prompt["metrics"]["instances"]) == (
        "float",
        "point",
        3,
    )
    assert "(float) on 3 objects in 2 images of coco" in result.stdout
    assert "prompt: prompt point" in result.stdout


def test_evaluate_detections_adds_ap(packed: Path, labeled: Path, tmp_path: Path) -> None:
    found = [{"image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 20], "score": 0.9}]
    found.append({"image_id": 7, "category_id": 9, "bbox": [5, 5, 0, 40], "score": 0.8})
    (tmp_path / "found.json").write_text(json.dumps(found))
    arguments = ("evaluate", packed, "--data", labeled, "--detections", tmp_path / "found.json")
    result = run(*arguments, "--json", tmp_path / "ap.json")
    assert_done(result)
    figures = json.loads((tmp_path / "ap.json").read_text())
    metrics = figures["tasks"]["instance"]["metrics"]
    assert 0 <= metrics["segm_ap"] <= metrics["segm_ap50"] <= 1
    assert "segm_ap_agnostic" in metrics
    assert figures["skipped"] == {"detection: box without area": 1}
    assert "skipped: detection: box without area" in result.stdout
    assert "segm_ap50" in result.stdout


def test_evaluate_oriented_boxes_of_a_large_image(packed: Path, tmp_path: Path) -> None:
    lines = [
        "10 10 30 10 30 30 10 30 plane 0",
        "100 10 120 10 120 30 100 30 ship 0",
        "1 1 1 1 1 1 1 1 ship 0",
    ]
    data = make_dota(tmp_path / "dota", {"a": lines, "b": None}, {"a": (64, 150)})
    arguments = ("evaluate", packed, "--task", "oriented", "--data", data, "--tile", "64")
    assert_done(run(*arguments, "--json", tmp_path / "own.json"))
    result = run(
        *arguments, "--detections", "simulated", "--task", "instance", "--json", tmp_path / "simulated.json"
    )
    assert_done(result)
    own, simulated = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("own", "simulated"))
    for figures in (own, simulated):
        metrics = figures["tasks"]["oriented"]["metrics"]
        assert (metrics["objects"], figures["images"]) == (2, 1)
        assert {"rotated_ap50/plane", "rotated_ap50/ship", "rotated_ap_agnostic"} <= set(metrics)
        assert figures["skipped"] == {"image without label file": 1, "quadrilateral without area": 1}
    assert own["tasks"]["oriented"]["options"] == {"detections": None, "tile": 64, "masks": False}
    assert list(simulated["tasks"]) == ["oriented", "instance"]
    for task in simulated["tasks"].values():
        assert task["options"]["detections"] == "simulated (seed 0, jitter 0.05, false 0.3)"
    assert "mean rotated IoU" in result.stdout
    (data / "labelTxt" / "a.txt").write_text("gsd:1\n1 2 3\n")
    assert_refused(run(*arguments), "a.txt:2", "got 3 words")


def test_evaluate_refuses_what_it_cannot_score(
    packed: Path, bare: Path, labeled: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("old")

    def refused(*arguments: str | Path, words: tuple[str, ...]) -> None:
        assert_refused(run("evaluate", packed, "--json", kept, "--overwrite", *arguments), *words)

    refused("--task", "semantic", "--labels", tmp_path / "no", words=("no:", "folder of label maps"))
    refused("--task", "semantic", words=("--labels", "simulated"))
    refused("--prompt", "scribble", words=("--prompt", "box, point or clicks", "scribble"))
    refused("--data", bare, words=("--data", "without annotations"))
    refused("--data", make_coco(tmp_path / "none", annotations=[]), words=("expected instances",))
    refused("--data", tmp_path / "[missing]", words=("[missing]",))
    refused("--detections", kept, words=("COCO format or DOTA's", "scenes"))
    refused("--data", labeled, "--detections", tmp_path / "no.json", words=("no.json",))
    broken = make_coco(tmp_path / "broken", annotations=good_annotations())
    (broken / "images" / "1.png").write_bytes(b"\x89PNG")
    refused("--data", broken, words=("1.png",))
    assert kept.read_text() == "old"
    # A bar that never came leaves no empty line.
    assert run("evaluate", packed, "--detections", kept).stderr.count("\n") == 1
    assert_refused(run("evaluate", packed, "--json", tmp_path, "--overwrite"), "it is a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "kept.json", "none"]


EVERYTHING = ("--points-per-side", "3", "--pred-iou", "0", "--stability", "0")


def test_evaluate_everything(packed: Path, labeled: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", packed, "--data", labeled, "--task", "everything", *EVERYTHING)
    result = run(*arguments, "--json", tmp_path / "e.json")
    assert_done(result)
    task = json.loads((tmp_path / "e.json").read_text())["tasks"]["everything"]
    assert task["options"]["generator"]["box_nms_thresh"] == 0.7
    assert task["options"]["points_per_side"] == 3
    assert task["metrics"]["objects"] == 3
    assert task["metrics"]["masks_per_image"] > 0
    assert f"{task['metrics']['ar1000']:.4f}" in result.stdout
    assert "everything: points_per_side 3" in result.stdout
    # The official thresholds are far above what a random model says of its masks.
    result = run("evaluate", packed, "--data", labeled, "--task", "everything", "--points-per-side", "3")
    assert_done(result)
    assert "pred_iou_thresh 0.88, stability_score_thresh 0.95" in " ".join(result.stdout.split())


def test_evaluate_semantic_with_simulated_and_given_labels(
    packed: Path, labeled: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", packed, "--data", labeled, "--task", "semantic", *EVERYTHING)
    for name in ("a", "b"):
        result = run(*arguments, "--labels", "simulated", "--json", tmp_path / f"{name}.json")
        assert_done(result)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    task = json.loads((tmp_path / "a.json").read_text())["tasks"]["semantic"]
    assert (task["options"]["labels"], task["metrics"]["label_maps"]) == ("simulated", 2)
    assert "mean IoU, unrefined" in result.stdout
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.zeros((40, 60), dtype=np.uint8)).save(maps / "1.png")
    result = run(*arguments, "--labels", maps)
    assert_done(result)
    assert "skipped: missing label map: 1" in result.stdout
    Image.fromarray(np.zeros((20, 60), dtype=np.uint8)).save(maps / "1.png")
    assert_refused(run(*arguments, "--labels", maps), "1.png: expected 40 x 60 pixels, got 20 x 60")


def test_evaluate_ade20k(packed: Path, tmp_path: Path) -> None:
    root = make_ade(tmp_path / "ade")
    arguments = ("evaluate", packed, "--data", root)
    result = run(*arguments, "--task", "semantic", "--labels", "simulated", *EVERYTHING)
    assert_done(result)
    assert "on 3 images of ade20k_validation" in result.stdout
    assert "skipped: missing annotation: 1" in result.stdout
    assert_refused(run(*arguments), "no objects", "task semantic")
    assert_refused(run(*arguments, "--task", "semantic"), "needs --labels")
    both = ("--task", "semantic", "--task", "everything", "--labels", "simulated")
    assert_refused(run(*arguments, *both), "no objects")


def test_evaluate_refuses_an_altered_checkpoint(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "q")
    content = bytearray((tmp_path / "q" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "q" / "model.safetensors").write_bytes(content)
    assert_refused(run("evaluate", tmp_path / "q"), "altered")


# --- segment


def save_exif_rotated(path: Path) -> None:
    """Stored 30 high and 20 wide; to be shown turned by 90 degrees, 20 high and 30 wide."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture((30, 20))).save(path, exif=exif)


PICTURES: dict[str, Any] = {
    "gray.png": lambda path: Image.fromarray(picture((20, 30))[..., 0]).save(path),
    "alpha.png": lambda path: Image.fromarray(
        np.dstack([picture((20, 30)), picture((20, 30))[..., :1]])
    ).save(path),
    "deep.png": lambda path: Image.fromarray(picture((20, 30))[..., 0].astype(np.uint16) * 256).save(path),
    "turned.jpg": save_exif_rotated,
}


@pytest.mark.parametrize("name", PICTURES)
def test_segment_reads_all_kinds_of_pictures(packed: Path, tmp_path: Path, name: str) -> None:
    PICTURES[name](tmp_path / name)
    result = run(
        "segment", packed, tmp_path / name, "--box", "2,2,28,15", "--point", "29,19", "--point", "3,4"
    )
    assert_done(result)
    written = tmp_path / f"{Path(name).stem}.masks.png"
    assert read_image(written).shape == (20, 30, 3)
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["box", "2,2,28,15"],
        ["point", "29,19"],
        ["point", "3,4"],
    ]
    assert lines[-1] == f"picture: {written}"
    assert "segmenting" in result.stderr


def test_segment_a_single_pixel(packed: Path, tmp_path: Path) -> None:
    Image.fromarray(picture((1, 1))).save(tmp_path / "dot.png")
    out = tmp_path / "new" / "[masks].png"
    assert_done(
        run("segment", packed, tmp_path / "dot.png", "--point", "0,0", "--box", "0,0,1,1", "--out", out)
    )
    assert read_image(out).shape == (1, 1, 3)


def test_segment_tells_the_size_and_the_quality_of_each_mask(
    packed: Path, bare: Path, tmp_path: Path
) -> None:
    result = run("segment", packed, bare / "0.png", "--box=-5,2,28,15", "--out", tmp_path / "m.png")
    assert_done(result)
    predictor = saqsam.Predictor(*saqsam.load(packed))
    predictor.set_image(read_image(bare / "0.png"))
    box = np.array([-5, 2, 28, 15])
    masks, ious, _ = predictor.predict(box=box, multimask_output=False)
    logits, _, _ = predictor.predict(box=box, multimask_output=False, return_logits=True)
    stability = (logits > 1).sum() / (logits > -1).sum()
    row = next(line for line in result.stdout.splitlines() if line.startswith("box"))
    assert row.split() == [
        "box",
        "-5,2,28,15",
        f"{ious[0]:.3f}",
        f"{stability:.3f}",
        f"{int(masks[0].sum()):,}",
    ]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], ["--box", "--point", "--everything"]),
        (["--box", "1,2,3"], ["--box", "x0,y0,x1,y1", "1,2,3"]),
        (["--box", "a,b,c,d"], ["--box", "a,b,c,d"]),
        (["--point", "1,2,3"], ["--point", "x,y,0"]),
        (["--point", "nan,1"], ["finite"]),
        (["--point", "60,3"], ["60 x 40", "(60, 3)"]),
        (["--box", "20,2,10,15"], ["x0 < x1", "(20, 2, 10, 15)"]),
        (["--box", "70,2,80,15"], ["60 x 40", "(70, 2, 80, 15)"]),
    ],
)
def test_segment_refuses_wrong_prompts(
    packed: Path, bare: Path, tmp_path: Path, prompt: list[str], words: list[str]
) -> None:
    assert_refused(run("segment", packed, bare / "0.png", *prompt, "--out", tmp_path / "m.png"), *words)
    assert not any(tmp_path.iterdir())


def test_segment_everything(packed: Path, bare: Path, tmp_path: Path) -> None:
    path = bare / "0.png"
    result = run("segment", packed, path, "--everything", *EVERYTHING, "--out", tmp_path / "m.png")
    assert_done(result)
    options = saqsam.GeneratorOptions(3, 0.0, 0.0)
    found = saqsam.MaskGenerator(saqsam.Predictor(*saqsam.load(packed)), options).generate(read_image(path))
    assert result.stdout.splitlines()[0] == f"{len(found)} masks from 3^2 points"
    assert (read_image(tmp_path / "m.png") != read_image(path)).any()
    arguments = ("segment", packed, path, "--everything", "--out", tmp_path / "none.png")
    assert_refused(run(*arguments, "--pred-iou", "1", "--points-per-side", "3"), "--pred-iou 1", "lower")
    assert not (tmp_path / "none.png").exists()
    assert_refused(run(*arguments, "--box", "1,2,3,4"), "not both")
    assert_refused(run("segment", packed, path, "--point", "1,2", "--stability", "0.5"), "need --everything")


def test_segment_never_harms_its_input(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    Image.fromarray(picture((20, 30))).save(path)
    before = path.read_bytes()
    (tmp_path / "link.png").symlink_to(path)

    def refused(out: Path, *words: str) -> None:
        assert_refused(run("segment", packed, path, "--point", "3,4", "--out", out), *words)

    refused(path, "is the image to segment")
    refused(tmp_path / "link.png", "is the image to segment")
    refused(tmp_path / "out.jpg", ".png", "out.jpg")
    refused(path / "below.png", "not a folder")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png", "link.png"]


def test_segment_refuses_what_is_no_picture(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    assert_refused(run("segment", packed, tmp_path / "text.png", "--point", "0,0"), "text.png")
    assert_refused(run("segment", packed, tmp_path / "none.png", "--point", "0,0"), "none.png")


# --- inspect


def test_inspect_fits_80_columns_uncut(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "out", Console(markup=False, emoji=False, highlight=False, width=80))
    result = run("inspect", packed)
    assert_done(result)
    first, *lines = result.stdout.splitlines()
    assert first == f"min-max-w4a4 ({packed})"
    assert max(map(len, lines)) <= 80
    assert "…" not in result.stdout
    rows = {line.split()[0]: line for line in lines}
    assert "w4a4" in rows["decoder.final_attention"]
    assert " to " in rows["encoder.qkv"]
    assert "float" in rows["iou_head"]
    assert {"bytes:", "MACs", "tensors:", "torch-int8:"} <= rows.keys()


def test_inspect_writes_all_figures(packed: Path, tmp_path: Path) -> None:
    assert_done(run("inspect", packed, "--json", tmp_path / "i.json"))
    content = json.loads((tmp_path / "i.json").read_text())
    assert content["name"] == "min-max-w4a4"
    assert 0 < (packed / "model.safetensors").stat().st_size - content["bytes"] < 100_000  # the header
    assert content["integer_layers"].keys() == {"integer", "dequantized"}


def test_inspect_refuses_what_is_no_checkpoint(tiny: Path, tmp_path: Path) -> None:
    assert_refused(run("inspect", tiny), str(tiny), "not a checkpoint of saqsam")
    assert_refused(run("inspect", tmp_path / "missing"), "missing")
    assert_refused(run("inspect", tmp_path), "config.json")


def test_numbers_are_short() -> None:
    numbers = [0, 950, 999, 1000, 12_345, 99_949, 99_950, 999_499, 999_500, 486_038_667_264]
    texts = ["0", "950", "999", "1.0k", "12.3k", "99.9k", "100k", "999k", "1.0M", "486G"]
    assert [result_tables._short(number) for number in numbers] == texts
    assert [result_tables._end(value) for value in (-9.99, 9.995, -12.34, 99.96, 170.4)] == [
        *("-9.99", "10.0", "-12.3", "100", "170"),
    ]


# --- the real process


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start Python with these arguments, the package on its path."""
    source = Path(saqsam.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source), "COLUMNS": "80"},
    )


# Several commands in one process, because importing torch takes longer than all of them; the last one's exit
# code becomes that of the process.
COMMANDS = """
import json, sys
from saqsam.cli.app import main
commands = json.loads(sys.argv[1])
for command in commands[:-1]:
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        assert not end.code
sys.argv[1:] = commands[-1]
main()
"""


# What takes seconds to import, and no help needs.
LEAN = """
import sys
from saqsam.cli.app import main
try:
    main()
finally:
    assert not {"torch", "transformers", "numpy"} & sys.modules.keys()
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["quantize", "--help"], 0),
        (["quantize", "--images", "3"], 2),
        (["evaluate", "--prompt", "scribble"], 2),
        (["segment", "sam-mini", "photo.jpg", "--box", "1,2,3"], 2),
        (["inspect", "no such folder"], 2),
        (["compress"], 2),
    ],
)
def test_help_and_plain_mistakes_need_no_torch(arguments: list[str], code: int) -> None:
    running = start("-c", LEAN, *arguments)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == code, stderr
    assert bool(stdout) == (code == 0)
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_process_prints_results_progress_and_one_line_for_an_error(tiny: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "q")
    good = ["quantize", str(tiny), "--out", out, "--images", "1", "--check-images", "1", "--method", "mse"]
    wrong = ["quantize", str(tiny), "--out", out]
    running = start("-c", COMMANDS, json.dumps([good, wrong]))
    stdout, stderr = running.communicate(timeout=120)
    assert running.returncode == 2
    assert stdout.splitlines()[-1] == f"picture: {tmp_path / 'q' / 'comparison.png'}"
    ends = [line.split(":")[0] for line in stderr.splitlines() if line.endswith(" s")]
    assert ends == [
        f"loading {tiny}",
        "scoring, float",
        "choosing prompts",
        "calibrating",
        "activation ranges",
        "packing weights",
        "writing the checkpoint",
        "reading the checkpoint back",
        "scoring, quantized",
        "drawing the comparison",
        "writing the report",
    ]
    assert stderr.splitlines()[-1] == f"error: {out} exists; choose another name, or pass --overwrite"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_process_and_leaves_nothing(
    tiny: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = ("quantize", tiny, "--out", tmp_path / "out" / "q", "--images", "100000", "--check", "none")
    running = start("-m", "saqsam", *command)
    assert running.stderr is not None
    lines = []
    while not any("choosing prompts" in line for line in lines):  # which would last for hours
        lines.append(running.stderr.readline())
        assert lines[-1], f"the process ended: {lines}"
    running.send_signal(number)
    try:
        stdout, stderr = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.glob("out/*"))


# ---- export, and exported folders


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SAM as a deployed checkpoint, to be changed by no test."""
    folder = tmp_path_factory.mktemp("models") / "deployed"
    return save_checkpoint(quantize_tiny(deployable(tiny_recipe(bits="w8a8"))), tiny_processor(), folder)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_export_is_written_compared_and_scored(
    deployed: Path, labeled: Path, tmp_path: Path, format: str
) -> None:
    out = tmp_path / "export"
    done = run("export", deployed, "--out", out, "--format", format)
    assert_done(done)
    assert "against PyTorch: IoU" in done.stdout
    assert "  encoder_products: float (the method: quantized); " in done.stdout
    assert json.loads((out / "parity.json").read_text())["mask_iou"] > 0.9
    assert_refused(run("export", deployed, "--out", out, "--format", format), "exists", "--overwrite")
    assert_done(run("export", deployed, "--out", out, "--format", format, "--overwrite"))
    scored = run("evaluate", out, "--data", labeled, "--json", tmp_path / "a.json", "--threads", "1")
    assert_done(scored)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["recipe"] == "min-max-deploy-w8a8-mixed"
    assert "min-max-deploy-w8a8-mixed" in scored.stdout
    assert_done(run("evaluate", deployed, "--data", labeled, "--json", tmp_path / "b.json"))
    other = json.loads((tmp_path / "b.json").read_text())
    mious = [figures["tasks"]["prompt"]["metrics"]["miou"] for figures in (found, other)]
    assert mious[0] == pytest.approx(mious[1], abs=0.05)


def test_exported_masks_are_drawn(deployed: Path, tmp_path: Path) -> None:
    assert_done(run("export", deployed, "--out", tmp_path / "export"))
    Image.fromarray(picture((40, 60))).save(tmp_path / "photo.png")
    command = ("segment", deployed, tmp_path / "photo.png", "--box", "5,5,30,30", "--runtime", "torch-int8")
    drawn = run(*command)
    assert_done(drawn)
    assert "quantized linear layers on integers" in drawn.stdout
    drawn = run(
        *("segment", tmp_path / "export", tmp_path / "photo.png", "--box", "5,5,30,30", "--point", "20,20"),
        *("--runtime", "openvino", "--overwrite"),
    )
    assert_done(drawn)
    assert read_image(tmp_path / "photo.masks.png").shape == (40, 60, 3)


@pytest.mark.slow
def test_a_float_model_is_exported_compared_and_scored(tiny: Path, labeled: Path, tmp_path: Path) -> None:
    done = run("export", tiny, "--out", tmp_path / "export")
    assert_done(done)
    assert "masks of float in onnxruntime against PyTorch: IoU 1.0000" in done.stdout
    assert "together" in done.stdout
    assert json.loads((tmp_path / "export" / "parity.json").read_text())["mask_iou"] > 0.999
    found = []
    for model in (tmp_path / "export", tiny):
        done = run("evaluate", model, "--data", labeled, "--json", tmp_path / "scores.json", "--overwrite")
        assert_done(done)
        found.append(json.loads((tmp_path / "scores.json").read_text()))
    assert [one["recipe"] for one in found] == ["float", "float"]
    mious = [one["tasks"]["prompt"]["metrics"]["miou"] for one in found]
    assert mious[0] == pytest.approx(mious[1], abs=1e-3)


@pytest.mark.slow
def test_an_export_in_the_layout_of_a_client_is_compared_too(deployed: Path, tmp_path: Path) -> None:
    out = tmp_path / "web"
    done = run("export", deployed, "--out", out, "--layout", "transformers-js")
    assert_done(done)
    assert "masks of min-max-deploy-w8a8-mixed in onnxruntime against PyTorch: IoU" in done.stdout
    assert "onnx/vision_encoder_quantized.onnx" in done.stdout
    assert json.loads((out / "parity.json").read_text())["mask_iou"] > 0.9
    assert_refused(run("evaluate", out), "other clients")
    assert_done(run("export", deployed, "--out", out, "--layout", "osam", "--overwrite"))
    assert {path.name for path in out.iterdir()} == {
        *("encoder.onnx", "decoder.onnx", "export.json", "parity.json")
    }


@pytest.mark.slow
def test_an_export_for_older_runtimes_and_batches(deployed: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    assert_done(run("export", deployed, "--out", out, "--opset", "17", "--free-batch"))
    details = json.loads((out / "export.json").read_text())["details"]
    assert details == {"opset": 17, "requires": {"onnxruntime": "1.12"}}
    assert set(json.loads((out / "parity.json").read_text())["other_runtimes"]) == {"openvino"}
    options = ("--out", tmp_path / "other", "--format", "openvino")
    assert_refused(run("export", deployed, *options, "--opset", "17"), "the format openvino has none, got 17")
    assert_refused(run("export", deployed, *options, "--free-batch"), "takes one image per call")


def test_layouts_that_do_not_fit_are_refused(deployed: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert_refused(run("export", deployed, *out, "--layout", "cvta"), "expected one of saqsam, samexporter")
    assert_refused(
        run("export", deployed, *out, "--layout", "cvat"), "expected embedding_channels 256, got 32"
    )
    assert_refused(
        run("export", deployed, *out, "--layout", "osam", "--format", "openvino"), "load onnx files"
    )
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(run("export", packed, "--out", out), "--deploy", "integer_biases=true")
    assert_refused(run("export", tmp_path / "nothing", "--out", out), "no such file or folder")
    assert_refused(run("export", packed, "--out", out, "--format", "tflite"), "expected one of onnx")
    assert not list(tmp_path.iterdir())


def test_an_export_is_no_checkpoint(deployed: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    assert_done(run("export", deployed, "--out", out))
    assert_refused(run("inspect", out), "is an export", "checkpoint")
    assert_refused(run("evaluate", out, "--runtime", "torch-int8"), "is an export", "checkpoint")
    assert_refused(run("quantize", out, "--out", tmp_path / "q"), "an export for other runtimes")


def test_a_runtime_for_what_is_no_export_is_refused(packed: Path, labeled: Path) -> None:
    assert_refused(
        run("evaluate", packed, "--data", labeled, "--runtime", "onnxruntime"), "not an export of saqsam"
    )
