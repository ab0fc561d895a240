"""`saqsam segment --format parquet` and `saqsam merge`: shards, resuming, bad images, and equality with `coco`."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pycocotools.coco
import pytest
from PIL import Image

from saqsam.bulk.plan import PLAN_FILE, Shard, claim_folder, read_plan
from saqsam.bulk.table import Failure, read_part
from saqsam.utils.errors import CheckpointError
from support.coco_folder import make_coco, picture
from support.command_line import assert_done, assert_refused, run

BOX = ("--box", "5,5,30,30")
BULK = ("--format", "parquet", "--images-per-file", "2")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(5):
        Image.fromarray(picture((40 + seed, 60), seed)).save(folder / f"{seed}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_write_what_one_process_writes(packed: Path, photos: Path, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    result = run("segment", packed, photos, *BOX, *BULK, "--out", whole)
    assert_done(result)
    first, _, last = result.stdout.splitlines()
    assert (first, last) == ("5 masks in 5 images", f"masks: {whole}")
    assert sorted(contents(whole)) == [*(f"part-{part:06d}.parquet" for part in range(3)), PLAN_FILE]
    for index in (1, 0):
        assert_done(
            run(
                "segment",
                packed,
                photos,
                *BOX,
                *BULK,
                "--out",
                shared,
                "--shard",
                f"{index}/2",
                "--workers",
                "2",
            )
        )
    assert contents(shared) == contents(whole)


def test_an_interrupted_run_resumes(packed: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    assert_done(run("segment", packed, photos, *BOX, *BULK, "--out", out))
    before = contents(out)
    (out / "part-000001.parquet").unlink()
    kept = (out / "part-000000.parquet").stat().st_mtime_ns
    result = run("segment", packed, photos, *BOX, *BULK, "--out", out)
    assert_done(result)
    assert result.stdout.splitlines()[:2] == ["2 of 3 parts are there", "2 masks in 2 images"]
    assert contents(out) == before
    assert (out / "part-000000.parquet").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("sam-mini", *BOX), "model"),
        (("--box", "5,5,30,31"), "prompts"),
        ((*BOX, "--tile", "64"), "prompts"),
        ((*BOX, "--images-per-file", "3"), "images"),
    ],
)
def test_another_run_does_not_add_to_a_folder(
    packed: Path, photos: Path, tmp_path: Path, change: tuple[str, ...], word: str
) -> None:
    out = tmp_path / "masks"
    assert_done(run("segment", packed, photos, *BOX, *BULK, "--out", out))
    before = contents(out)
    model, *rest = change if change[0] == "sam-mini" else (packed, *change)
    assert_refused(
        run("segment", model, photos, *BULK, *rest, "--out", out), f"its {word} differ", "--overwrite"
    )
    assert contents(out) == before
    assert_done(run("segment", model, photos, *BULK, *rest, "--out", out, "--overwrite"))
    assert contents(out) != before


def test_other_boxes_in_the_annotation_file_are_another_run(packed: Path, tmp_path: Path) -> None:
    data = make_coco(tmp_path)
    arguments = ("segment", packed, data, "--format", "parquet", "--out", tmp_path / "masks")
    assert_done(run(*arguments))
    file = data / "annotations.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] += 1
    file.write_text(json.dumps(content))
    assert_refused(run(*arguments), "its prompts differ")


def test_merged_masks_are_those_of_the_format_coco(packed: Path, tmp_path: Path) -> None:
    data = make_coco(tmp_path)
    out = tmp_path / "masks"
    assert_done(run("segment", packed, data, *BULK[:2], "--images-per-file", "1", "--out", out))
    for form in ("coco", "coco-polygons"):
        direct, merged = tmp_path / f"direct-{form}.json", tmp_path / f"merged-{form}.json"
        assert_done(run("segment", packed, data, "--format", form, "--out", direct))
        result = run("merge", out, "--format", form, "--out", merged)
        assert_done(result)
        assert result.stdout.splitlines() == [f"masks of 2 images: {merged}"]
        assert merged.read_bytes() == direct.read_bytes()
    assert pycocotools.coco.COCO(str(tmp_path / "merged-coco.json")).loadCats([3])[0]["name"] == "cat"
    table = tmp_path / "all.parquet"
    assert_done(run("merge", out, "--out", table))
    parts = [pq.read_table(path).num_rows for path in out.glob("*.parquet")]
    assert pq.read_table(table).num_rows == sum(parts) == 3


def test_categories_that_images_number_differently_are_numbered_anew(
    packed: Path, photos: Path, tmp_path: Path
) -> None:
    import io
    import tarfile

    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as file:
        for number, category in enumerate(("dog", "cat")):
            prompts = json.dumps([{"box": [5, 5, 30, 30], "category": category}]).encode()
            image = (photos / f"{number}.png").read_bytes()
            for name, content in ((f"{number}.json", prompts), (f"{number}.png", image)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    out, merged = tmp_path / "masks", tmp_path / "masks.json"
    assert_done(run("segment", packed, archive, "--format", "parquet", "--out", out))
    assert_done(run("merge", out, "--out", merged))
    document = json.loads(merged.read_text())
    assert document["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [one["category_id"] for one in document["annotations"]] == [2, 1]


def test_bad_images_are_set_aside_with_their_error(packed: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "1.png").write_bytes(b"a video, for example")
    out = tmp_path / "masks"
    result = run("segment", packed, photos, *BOX, *BULK, "--out", out)
    assert_done(result)
    assert result.stdout.startswith("4 masks in 4 images (1 image skipped)\n")
    assert "skipped 1.png: " in result.stderr
    assert [type(one) is Failure for one in read_part(out / "part-000000.parquet")] == [False, True]
    result = run("merge", out, "--out", tmp_path / "masks.json")
    assert_done(result)
    assert "1 image failed and is not in the file" in result.stderr
    assert len(json.loads((tmp_path / "masks.json").read_text())["images"]) == 4


def test_a_run_without_any_image_that_can_be_read_is_an_error(packed: Path, tmp_path: Path) -> None:
    data = make_coco(tmp_path)
    for path in [*data.rglob("*.png"), *data.rglob("*.jpg")]:
        path.write_bytes(b"elsewhere")
    result = run("segment", packed, data, "--format", "parquet", "--out", tmp_path / "masks")
    assert_refused(result, "none of 2 images could be segmented", "--overwrite")


def test_assumptions_on_images_are_counted(packed: Path, photos: Path, tmp_path: Path) -> None:
    pages = [Image.fromarray(picture((40, 60), seed)) for seed in range(2)]
    for name in ("x.tif", "y.tif"):
        pages[0].save(photos / name, save_all=True, append_images=pages[1:])
    result = run("segment", packed, photos, *BOX, *BULK, "--out", tmp_path / "masks")
    assert_done(result)
    assert "first of several pages or frames read (2 images)" in result.stderr


def test_a_damaged_archive_fails_alone(packed: Path, photos: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(photos / "0.png", "0.png")
    (tmp_path / "b.tar").write_bytes(b"nothing" * 200)
    out = tmp_path / "masks"
    arguments = (
        "segment",
        packed,
        tmp_path / "b.tar",
        tmp_path / "a.tar",
        *BOX,
        "--format",
        "parquet",
        "--out",
        out,
    )
    assert_refused(run(*arguments), "1 of 2 parts failed", "b.tar: damaged tar archive")
    assert sorted(contents(out)) == ["part-000001.parquet", PLAN_FILE]
    assert_refused(run("merge", out, "--out", tmp_path / "m.json"), "1 of 2 parts are missing", "--partial")
    result = run("merge", out, "--out", tmp_path / "m.json", "--partial")
    assert_done(result)
    assert "1 of 2 parts are missing" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*BOX, "--format", "parquet"), ["--out: expected a folder"]),
        ((*BOX, "--shard", "0/2", "--out", "m.json"), ["need --format parquet"]),
        (
            (*BOX, *BULK, "--out", "m", "--shard", "2/2"),
            ["--shard: expected i/n with i from 0 to n-1, got 2/2"],
        ),
        ((*BOX, *BULK, "--out", "m", "--shard", "a"), ["--shard: expected i/n", "'a'"]),
        ((*BOX, *BULK, "--out", "m", "--shard", "0/2", "--overwrite"), ["--shard: expected no --overwrite"]),
        ((*BOX, *BULK, "--out", "m", "--engine", "spark"), ["--engine: expected local or ray"]),
        ((*BOX, *BULK, "--out", "m", "--actors", "2"), ["--actors needs --engine ray"]),
        ((*BULK, "--out", "m"), ["give at least one --box"]),
        ((*BOX, *BULK, "--out", "photos"), ["photos holds 0.png, 1.png, 2.png, ..."]),
        ((*BOX, *BULK, "--out", "photos", "--overwrite"), ["found no plan.json"]),
    ],
)
def test_wrong_options_are_refused(
    packed: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("segment", packed, photos, *arguments), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    assert len(list(photos.iterdir())) == 5


def test_merge_refuses_what_is_no_run(packed: Path, photos: Path, tmp_path: Path) -> None:
    assert_refused(run("merge", photos, "--out", tmp_path / "m.json"), "found no plan.json")
    assert_refused(run("merge", photos, "--out", tmp_path / "m.png"), "--format: expected coco")
    out = tmp_path / "masks"
    assert_done(run("segment", packed, photos, *BOX, *BULK, "--out", out))
    (out / PLAN_FILE).write_text('{"version": 1, "parts": "many"}')
    assert_refused(run("merge", out, "--out", tmp_path / "m.json"), PLAN_FILE)
    with pytest.raises(CheckpointError):
        read_plan(out)


def test_processes_may_claim_a_folder_at_the_same_time(packed: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    assert_done(run("segment", packed, photos, *BOX, *BULK, "--out", out))
    claim_folder(out, read_plan(out))
    assert list(Shard.parse("1/3").of(8)) == [1, 4, 7]


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_files(packed: Path, photos: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "masks"
    assert_done(run("segment", packed, photos, *BOX, *BULK, "--out", whole))
    script = (
        "import os, signal, sys\n"
        "from saqsam.bulk import worker\n"
        "from saqsam.cli.app import main\n"
        "real = worker.write_part\n"
        "def write_part(path, results, checkpoint):\n"
        "    if path.name == 'part-000001.parquet':\n"
        "        next(iter(results))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(path, results, checkpoint)\n"
        "worker.write_part = write_part\n"
        "main()\n"
    )
    arguments = ["segment", packed, photos, *BOX, *BULK, "--out", out]
    killed = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=False)
    assert killed.returncode == -9
    assert sorted(contents(out)) == [".part-000001.attempts", "part-000000.parquet", PLAN_FILE]
    assert_done(run(*arguments))
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_an_image_that_kills_the_process_is_skipped(packed: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    script = (
        "import os, signal\n"
        "from saqsam.cli.app import main\n"
        "from saqsam.segmentation import sources\n"
        "real = sources.read_image_with_notes\n"
        "def read(path):\n"
        "    if path.name == '3.png':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(path)\n"
        "sources.read_image_with_notes = read\n"
        "main()\n"
    )
    arguments = ["segment", packed, photos, *BOX, "--format", "parquet", "--out", out]
    codes = [
        subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=False).returncode
        for _ in range(4)
    ]
    assert codes == [-9, -9, -9, 0]
    failed = [one for one in read_part(out / "part-000000.parquet") if isinstance(one, Failure)]
    assert [(one.name, "crashed" in one.error) for one in failed] == [("3.png", True)]
