"""`saqsam segment`: folders in place of an image, and files of several pages."""

from pathlib import Path

import pytest
from PIL import Image

from saqsam.cli.outputs import claim_output
from support.coco_folder import picture
from support.command_line import assert_done, assert_refused, run


@pytest.mark.parametrize("name", [".", "..", "/", "folder", "folder/", "folder/..", "./", ""])
@pytest.mark.parametrize("prompt", [("--point", "3,4"), ("--everything",)])
def test_a_folder_in_place_of_the_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prompt: tuple[str, ...]
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    shown = str(Path(name))
    assert_refused(
        run("segment", "sam-mini", name, *prompt), f"expected an image file, got the folder {shown}"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_a_folder_with_a_named_output_is_refused(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.png"
    assert_refused(run("segment", packed, "/", "--point", "3,4", "--out", out), "found a folder")
    assert not out.exists()


def test_the_root_folder_is_no_output() -> None:
    with (
        pytest.raises(ValueError, match="cannot write /: "),
        claim_output(Path("/"), overwrite=True),
    ):
        pytest.fail("the root was claimed")


def test_a_tiff_of_several_pages_says_that_the_first_is_read(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    pages = [Image.fromarray(picture((20, 30), seed)) for seed in range(2)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    result = run("segment", packed, path, "--point", "3,4")
    assert_done(result)
    assert "first of several pages or frames read" in result.stderr
