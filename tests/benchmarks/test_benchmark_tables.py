import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from saqsam.recipes.deployment import deployable
from saqsam.recipes.overrides import with_overrides
from saqsam.recipes.presets import recipe_for
from support.benchmark_row import BENCHMARK_ROW
from support.script_modules import scripts


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with scripts("benchmarks", ["rows", "tables", "row_tables", "other_tables", "deploy_fields"]) as found:
        yield found


@pytest.fixture
def rows(modules):
    return modules["rows"]


@pytest.fixture
def tables(modules):
    return modules["tables"]


@pytest.fixture
def row_tables(modules):
    return modules["row_tables"]


@pytest.fixture
def other_tables(modules):
    return modules["other_tables"]


def values(**changes: Any) -> dict[str, Any]:
    return BENCHMARK_ROW | changes


UNQUANTIZED = {"calibration": "", "calibration_images": None, "seed": None, "low_width_macs": None}
FLOAT = UNQUANTIZED | {"recipe": "float", "method": "float", "bits": "w32a32", "miou": 0.6, "segm_ap": 0.2}
BOX = UNQUANTIZED | {
    "method": "fill-box",
    "bits": "",
    "model": "",
    "model_hash": "",
    "miou": 0.589,
    "segm_ap": None,
}


@pytest.fixture
def made(rows):
    """Float, filled box, and two methods at two widths."""
    return [
        rows.Row(**values(**BOX)),
        rows.Row(**values(**FLOAT)),
        rows.Row(**values()),
        rows.Row(**values(bits="w8a8", miou=0.6004, checkpoint_bytes=1_900_000)),
        rows.Row(**values(method="min-max", miou=0.31)),
        rows.Row(**values(method="min-max", bits="w8a8", miou=0.599, checkpoint_bytes=1_900_000)),
    ]


def page(name: str) -> str:
    return f"before\n<!-- table:{name} -->\nold\n<!-- /table -->\nafter\n"


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_a_file_gives_back_the_rows_that_were_appended(rows, made, tmp_path):
    path = tmp_path / "new" / "rows.csv"
    assert rows.read_rows(path) == []
    for row in made:
        rows.append_row(path, row)
    assert rows.read_rows(path) == made
    assert path.read_text().count("checkpoint_bytes") == 1
    assert [row.key for row in rows.read_rows(path)] == [row.key for row in made]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-3], "cut short"),
        (lambda text: text.replace("miou", "mIoU", 1), "expected the columns"),
        (lambda text: text + text.splitlines()[1] + "\n", "line 8: this was measured already"),
        (lambda text: text.replace("0.310000", "good"), "line 6: miou: could not convert"),
        (lambda text: text.rpartition(",")[0] + "\n", "line 7: expected 32 values"),
        (lambda text: text.rstrip() + ",1\n", "line 7: expected 32 values"),
    ],
)
def test_damaged_files_are_refused(rows, made, tmp_path, damage, message):
    path = tmp_path / "rows.csv"
    for row in made:
        rows.append_row(path, row)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message):
        rows.read_rows(path)


def test_a_block_compares_methods_and_widths_with_float(tables, made):
    assert lines(tables.fill_tables(page("ptq"), made)) == [
        "before",
        "<!-- table:ptq -->",
        "**coco_val**, mean IoU, box prompts (1,346 objects in 153 images); sam-mini calibrated on 32 images of coco_train",  # noqa: E501
        "| method | float | w8a8 | w4a4 |",
        "| --- | ---: | ---: | ---: |",
        "| box-fill baseline | 0.589 (−0.011) |  |  |",
        "| float model | 0.600 |  |  |",
        "| `min-max` |  | 0.599 (−0.001) | 0.310 (−0.290) |",
        "| `mse` |  | 0.600 (0.000) | 0.500 (−0.100) |",
        "<!-- /table -->",
        "after",
    ]


def test_seeds_are_averaged_and_calibrations_kept_apart(rows, tables, made):
    more = [rows.Row(**values(seed=1, miou=0.54)), rows.Row(**values(calibration="scenes", miou=0.4))]
    text = tables.fill_tables(page("ptq"), made + more)
    assert "0.520 ± 0.028 (−0.080)" in text
    blocks = text.split("**coco_val**")[1:]
    assert ["of coco_train" in block for block in blocks] == [True, False]
    assert "| `mse` |  | 0.400 (−0.200) |" in blocks[1]
    assert all("| float model | 0.600 |" in block for block in blocks)


def test_trials_and_older_weights_are_not_shown(rows, tables, made):
    old = rows.Row(**values(date="2025-01-01T00:00:00Z", model_hash="bbbb", miou=0.111))
    trial = rows.Row(**values(images_evaluated=2, instances=9, miou=0.999))
    text = tables.fill_tables(page("ptq"), made)
    assert tables.fill_tables(page("ptq"), [old, *made, trial]) == text
    newer = dataclasses.replace(old, date="2027-01-01T00:00:00Z")
    only_newer = tables.fill_tables(page("ptq"), [*made, newer])
    assert "0.111" in only_newer
    assert "min-max" not in only_newer


def test_rows_over_different_objects_cannot_share_a_block(rows, tables, made):
    with pytest.raises(ValueError, match="rows of coco_val differ"):
        tables.fill_tables(page("ptq"), [*made, rows.Row(**values(bits="w6a6", instances=1345))])


def test_a_marker_may_ask_for_one_data_set(rows, tables, made):
    more = [*made, rows.Row(**values(data="aerial_val", miou=0.3))]
    assert "aerial_val**" in tables.fill_tables(page("ptq"), more)
    text = tables.fill_tables(page("ptq coco_val"), more)
    assert "**coco_val**" in text
    assert "aerial_val**" not in text


def test_detections_have_no_line_for_the_box_itself(tables, made):
    text = tables.fill_tables(page("detections"), made)
    assert "COCO mask AP" in text
    assert "| `mse` |  | 0.125 (−0.075) | 0.125 (−0.075) |" in text
    assert "box-fill baseline" not in text


def test_sizes_join_methods_of_one_size(tables, made):
    assert lines(tables.fill_tables(page("sizes"), made))[2:-2] == [
        "| model | bits | methods | bytes on disk | compression | MACs at these bits |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        "| sam-mini | w8a8 | min-max, mse | 1,900,000 | 3.42x | 91.0 % |",
        "| sam-mini | w4a4 | min-max, mse | 1,000,000 | 6.50x | 91.0 % |",
    ]


def test_the_methods_table_shows_the_hardest_bits(tables, made):
    assert lines(tables.fill_tables(page("methods"), made))[2:-2] == [
        "| mean IoU on | coco_val |",
        "| --- | ---: |",
        "| box-fill baseline | 0.589 |",
        "| float model | 0.600 |",
        "| `min-max` | 0.310 (−0.290) |",
        "| `mse` | 0.500 (−0.100) |",
        "sam-mini at `w4a4`, calibrated on 32 images of coco_train; box prompts. "
        "In parentheses: difference from the float model.",
    ]


def test_the_headline_leaves_out_plain_ranges(tables, made):
    shown = lines(tables.fill_tables(page("headline"), made))
    assert "| `mse` | 0.500 (−0.100) |" in shown
    assert not any("min-max" in line for line in shown)


def test_changed_recipes_are_not_shown_under_a_method_s_name(tables, rows, made, row_tables):
    changed = rows.Row(**values(settings="clipping=none", miou=0.1))
    for name in row_tables.TABLES:
        assert tables.fill_tables(page(name), [*made, changed]) == tables.fill_tables(page(name), made)


def test_provenance_names_machine_and_versions(tables, made):
    text = tables.fill_tables(page("provenance"), made)
    assert "| machine | Some CPU @ 2 GHz, 1 thread |" in text
    assert "| weights (SHA-256) | sam-mini aaaa |" in text


@pytest.fixture
def defaults(rows, made):
    """Float, filled box, a point, and the default method at two widths, with two seeds at the narrow one."""
    plus = {"method": "saq-sam-plus", "recipe": "saq-sam-plus"}
    return [
        *made,
        rows.Row(**values(**FLOAT | {"prompt": "point", "miou": 0.3})),
        rows.Row(**values(**plus, miou=0.56)),
        rows.Row(**values(**plus, miou=0.58, seed=1)),
        rows.Row(**values(**plus, bits="w8a8", miou=0.598, checkpoint_bytes=1_900_000)),
    ]


def test_the_default_method_has_a_line_a_width(tables, defaults):
    assert lines(tables.fill_tables(page("widths"), defaults))[2:-2] == [
        "| bits | size on disk | compression | coco_val |",
        "| --- | ---: | ---: | ---: |",
        "| box-fill baseline |  |  | 0.589 |",
        "| float32 | 6.5 MB |  | 0.600 |",
        "| `w8a8` | 1.9 MB | 3.4x | 0.598 (−0.002) |",
        "| `w4a4` | 1.0 MB | 6.5x | 0.570 ± 0.014 (−0.030) |",
    ]


def test_the_float_model_stands_beside_its_box(tables, defaults):
    assert lines(tables.fill_tables(page("baseline"), defaults))[2:-2] == [
        "| mean IoU | coco_val |",
        "| --- | ---: |",
        "| sam-mini, box | 0.600 |",
        "| box-fill baseline | 0.589 |",
        "| sam-mini, one point | 0.300 |",
    ]


def test_goals_are_met_by_the_mean_over_seeds(tables, rows, defaults):
    def shown(miou: float) -> str:
        row = rows.Row(**values(method="saq-sam-plus", bits="w6a6", miou=miou))
        return lines(tables.fill_tables(page("goals"), [*defaults, row]))[4]

    assert shown(0.592) == "| `saq-sam-plus` | met | met | met |"
    assert shown(0.585) == "| `saq-sam-plus` | met | missed on coco_val (−0.015) | met |"


BLOCKS = ["ptq", "detections", "sizes", "headline", "methods", "provenance", "widths", "baseline", "goals"]


@pytest.mark.parametrize("name", BLOCKS)
def test_without_rows_every_table_says_how_to_get_them(tables, name):
    assert tables.NOTHING_YET in tables.fill_tables(page(name), [])


@pytest.mark.parametrize("name", BLOCKS)
def test_filling_twice_changes_nothing(tables, defaults, name):
    once = tables.fill_tables(page(name), defaults)
    assert tables.fill_tables(once, defaults) == once
    assert "old" not in once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (page("acuracy"), "no table 'acuracy'; expected one of ptq"),
        ("<!-- table:ptq -->\n", "needs a"),
        ("<!-- table:ptq -->\n" + page("ptq"), "needs a"),
        (page("ptq") + "<!-- /table -->\n", "needs a"),
    ],
)
def test_broken_markers_are_refused(tables, text, message):
    with pytest.raises(ValueError, match=message):
        tables.fill_tables(text, [])


def test_check_finds_stale_pages_and_leaves_them(rows, tables, made, tmp_path, capsys):
    path, document = tmp_path / "rows.csv", tmp_path / "page.md"
    for row in made:
        rows.append_row(path, row)
    document.write_text(page("ptq"))
    arguments = ["--csv", str(path), str(document)]
    assert tables.main(["--check", *arguments]) == 1
    assert "page.md: stale" in capsys.readouterr().out
    assert document.read_text() == page("ptq")
    assert tables.main(arguments) == 0
    assert "0.500 (−0.100)" in document.read_text()
    assert tables.main(["--check", *arguments]) == 0
    rows.append_row(path, rows.Row(**values(bits="w6a6", miou=0.58)))
    assert tables.main(["--check", *arguments]) == 1
    document.write_text(page("nonsense"))
    assert tables.main(["--check", *arguments]) == 2
    assert "page.md: no table 'nonsense'" in capsys.readouterr().err


def test_the_table_of_ranges_sums_up_slots_and_kinds_of_layers(tables: ModuleType, other_tables) -> None:
    def line(
        model: str, where: str, tensor: str, largest: float, ratio: float, highest: float
    ) -> dict[str, str]:
        values = {"largest": largest, "common": largest / ratio, "ratio": ratio, "highest_ratio": highest}
        return {"model": model, "where": where, "tensor": tensor} | {k: str(v) for k, v in values.items()}

    lines = [
        line("m", "decoder", "layers.0.self_attn.key_quantizer", 4.0, 2.0, 2.0),
        line("m", "decoder", "layers.1.self_attn.key_quantizer", 3.0, 1.5, 1.5),
        line("m", "encoder", "qkv", 9.0, 1.25, 3.0),
        line("m-outliers", "decoder", "layers.0.self_attn.key_quantizer", 170.0, 42.5, 42.5),
        line("m-outliers", "encoder", "qkv", 9.0, 1.25, 3.0),
        line("SAM vit-b", "encoder", "qkv", 18.0, 1.8, 2.4),
    ]
    assert other_tables.ranges(lines).splitlines() == [
        "| decoder | tensors | largest value | largest / 99th percentile, min | max |",
        "| --- | --- | ---: | ---: | ---: |",
        "| m | keys | 4.0 | 1.5 | 2.0 |",
        "| m-outliers | keys | 170.0 | 42.5 | 42.5 |",
        "| SAM-B, published | queries and keys | 177 |  | about 100 |",
        "",
        "| encoder layer input | qkv |",
        "| --- | ---: |",
        "| m | 1.2 (up to 3.0) |",
        "| SAM vit-b | 1.8 (up to 2.4) |",
    ]
    assert other_tables.ranges([]) == ""


def test_the_table_of_who_is_ahead_has_rivals_down_and_data_across(tables: ModuleType, other_tables) -> None:
    def line(rival: str, data: str, difference: float) -> dict[str, str]:
        numbers = {"difference": difference, "low": difference - 0.01, "high": difference + 0.01}
        names = {"method": "saq-sam", "bits": "w4a4", "rival": rival, "data": data, "seeds": "1"}
        return names | {name: f"{value:.6f}" for name, value in numbers.items()}

    lines = [line("ptq4sam", "coco_val", 0.02), line("mse", "coco_val", 0.03), line("mse", "scenes", -0.01)]
    assert other_tables.ahead(lines).splitlines() == [
        "**`saq-sam`** at w4a4 minus each other method (seeds: 1)",
        "",
        "|  | scenes | coco_val |",
        "| --- | ---: | ---: |",
        "| `mse` | −0.010 [−0.020, 0.000] | +0.030 [+0.020, +0.040] |",
        "| `ptq4sam` |  | +0.020 [+0.010, +0.030] |",
    ]
    assert other_tables.ahead([]) == ""


SHOWN = {"bits": "w4a4", "data": "coco_val", "seed": 0, "calibration": "coco_train"}


def test_ablation_puts_each_change_below_the_method_as_it_is(rows, row_tables):
    plain = [rows.Row(**values(**SHOWN, miou=0.5)), rows.Row(**values(**SHOWN | {"seed": 1}, miou=0.9))]
    changed = [
        rows.Row(**values(**SHOWN, settings="bimodal=true", miou=0.52)),
        rows.Row(**values(**SHOWN, settings="clipping=default equalized=true", miou=0.49)),
    ]
    assert row_tables.ablation(changed, plain).splitlines()[2:] == [
        "| `mse` |  | 0.500 |",
        "|  | `bimodal=true` | 0.520 (+0.020) |",
        "|  | `clipping=default` `equalized=true` | 0.490 (−0.010) |",
    ]
    assert row_tables.ablation([], plain) == ""


def test_ablation_stays_with_its_weights_when_newer_ones_are_measured(rows, tables, tmp_path, monkeypatch):
    newer = {"model_hash": "0" * 12, "date": "2099-01-01T00:00:00Z"}
    plain = [rows.Row(**values(**SHOWN, miou=0.5)), rows.Row(**values(**SHOWN | newer, miou=0.7))]
    rows.append_row(
        tmp_path / "ablation.csv", rows.Row(**values(**SHOWN, settings="bimodal=true", miou=0.52))
    )
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert lines(tables.fill_tables(page("ablation"), plain))[4:-2] == [
        "| `mse` |  | 0.500 |",
        "|  | `bimodal=true` | 0.520 (+0.020) |",
    ]


def test_precision_is_compared_at_the_same_bits_and_seed(rows, row_tables):
    low, high = SHOWN, SHOWN | {"bits": "w8a8"}
    plain = [
        rows.Row(**values(**low, miou=0.5)),
        rows.Row(**values(**low | {"seed": 1}, miou=0.9)),
        rows.Row(**values(**high, miou=0.6)),
    ]
    settings = "reconstruction.precision=bfloat16"
    changed = [rows.Row(**values(**high, settings=settings, miou=0.59))]
    assert row_tables.precision(changed, plain).splitlines()[2:] == [
        "| `mse` w8a8 | float32 | 0.600 |",
        "| `mse` w8a8 | bfloat16 | 0.590 (−0.010) |",
    ]
    assert row_tables.precision([], plain) == ""


def test_methods_on_planted_outliers_stand_beside_those_without(rows, row_tables):
    def row(model: str, method: str, bits: str, miou: float, **changes: Any):
        calibration = "" if method == "float" else "coco_train"
        changes = {"calibration": calibration, **changes}
        return rows.Row(
            **{**BENCHMARK_ROW, "model": model, "method": method, "bits": bits, "miou": miou, **changes}
        )

    plain = [
        row("sam-mini", "float", "w32a32", 0.6),
        row("sam-mini", "mse", "w4a4", 0.5),
        row("sam-mini", "mse", "w4a4", 0.1, calibration="scenes"),
        row("sam-mini", "brecq", "w4a4", 0.5),
    ]
    planted = [
        row("twin", "float", "w32a32", 0.59),
        row("twin", "mse", "w4a4", 0.0),
        row("twin", "mse", "w4a4", 0.2, seed=1),
    ]
    assert row_tables.outliers(planted, plain).splitlines() == [
        "| method | twin w4a4 | sam-mini w4a4 |",
        "| --- | ---: | ---: |",
        "| float model | 0.590 | 0.600 |",
        "| `mse` | 0.100 ± 0.141 (−0.490) | 0.500 (−0.100) |",
    ]
    assert row_tables.outliers([], plain) == ""


def test_a_model_with_planted_outliers_has_other_weights_than_the_one_beside_it(
    rows, tables, made, monkeypatch, tmp_path
):
    """Rows of the bundled model stay, those of its earlier weights do not."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    twin = {"model": "twin", "model_hash": "bbbb"}
    rows.append_row(tmp_path / "outliers.csv", rows.Row(**values(**{**FLOAT, **twin, "miou": 0.59})))
    rows.append_row(tmp_path / "outliers.csv", rows.Row(**values(**twin, miou=0.1)))
    earlier = rows.Row(**values(model_hash="0000", date="2026-01-01T00:00:00Z", miou=0.2))
    text = tables.fill_tables(page("outliers"), [earlier, *made])
    (line,) = [line for line in lines(text) if line.startswith("| `mse`")]
    assert line == "| `mse` | 0.100 (−0.490) | 0.500 (−0.100) |"


def test_substitutions_are_compared_with_the_method_as_it_is(rows, row_tables):
    def row(settings: str, data: str, miou: float):
        changes = {"method": "mse", "bits": "w8a8", "settings": settings, "data": data, "miou": miou}
        return rows.Row(**{**BENCHMARK_ROW, **changes})

    found = [
        row("integer_biases=true", "coco_val", 0.498),
        row("", "coco_val", 0.5),
        row("", "nuclei_val", 0.7),
        row("weights.symmetric=true", "nuclei_val", 0.71),
    ]
    assert row_tables.substitutions(found, []).splitlines() == [
        "**`mse`**, w8a8, Some CPU @ 2 GHz, 1 thread",
        "",
        "|  | coco_val | nuclei_val |",
        "| --- | ---: | ---: |",
        "| unchanged method | 0.500 | 0.700 |",
        "| symmetric weights at every width |  | 0.710 (+0.010) |",
        "| integer biases | 0.498 (−0.002) |  |",
    ]
    assert row_tables.substitutions([], []) == ""


def test_all_substitutions_together_are_the_deployable_recipe(modules):
    settings = modules["deploy_fields"].SUBSTITUTIONS[
        "all combined, and 8-bit hidden upscaling layers: `--deploy`"
    ]
    for method in ("mse", "saq-sam-s"):
        plain = recipe_for(method, "w4a8")
        deployed, together = deployable(plain), with_overrides(plain, settings)
        # `finest` is of logarithmic probabilities; uniform ones do not read it.
        uniform = dataclasses.replace(together.probabilities, finest=deployed.probabilities.finest)
        together = dataclasses.replace(together, method=deployed.method, probabilities=uniform)
        assert together == deployed


def test_shift_sets_calibrations_side_by_side(rows, row_tables):
    plain = [rows.Row(**values(**SHOWN, miou=0.5))]
    other = [rows.Row(**values(**SHOWN | {"calibration": "nuclei_train"}, miou=0.4))]
    assert row_tables.shift(other, plain).splitlines() == [
        "| calibrated on | coco_train: coco_val | nuclei_train: coco_val |",
        "| --- | ---: | ---: |",
        "| `mse` | 0.500 | 0.400 |",
    ]


def test_steps_go_up_name_the_minutes_and_leave_out_other_engines(rows, row_tables):
    learned = {"method": "saq-sam", "seconds_quantize": 90.0}
    plain = [rows.Row(**values(**SHOWN | learned, steps=2400, miou=0.5)), rows.Row(**values(**SHOWN))]
    curve = [rows.Row(**values(**SHOWN | learned, steps=count, miou=count / 10_000)) for count in (4800, 300)]
    assert row_tables.steps(curve, plain).splitlines()[2:] == [
        "| `saq-sam` | 300 | 1.5 | 0.030 |",
        "| `saq-sam` | 4,800 | 1.5 | 0.480 |",
    ]


def test_cost_has_a_table_for_each_subject(other_tables):
    common = {
        "recipe": "saq-sam-w4a4",
        "steps": "",
        "peak_gib": "",
        "ratio": "",
        "machine": "m, 2 threads",
        "torch": "2",
    }
    lines = [
        common | {"subject": "sam-mini", "what": "clipping attentions", "seconds": "10.00", "ratio": "0.025"},
        common | {"subject": "sam-mini", "what": "total", "seconds": "400.00", "ratio": "1.0"},
        common
        | {"subject": "sam-b-plus", "what": "total", "seconds": "9.0", "ratio": "1", "peak_gib": "5.1"},
        common | {"subject": "sam-h-mse", "what": "quantize", "seconds": "200.5", "peak_gib": "4.2"},
        common | {"subject": "sam-b", "what": "1/8 encoder stage 1", "seconds": "20.5", "steps": "2000"},
        common | {"subject": "sam-b", "what": "2/8 encoder stage 2", "seconds": "21.5", "steps": "2000"},
        common | {"subject": "sam-b", "what": "8/8 final attention", "seconds": "0.5", "steps": "10000"},
        common | {"subject": "sam-b", "what": "projected total", "seconds": "36000", "peak_gib": "7.5"},
    ]
    text = other_tables.cost(lines)
    assert "| clipping attentions | 10.00 | 2.5 % |" in text
    assert "| total (peak 5.1 GiB) | 9.0 | 100.0 % |" in text
    assert "| `saqsam quantize` | 200.5 | 4.2 |" in text
    assert "| saq-sam-w4a4 | 2 encoder stages | 20.5, 21.5 | 2,000 |  |" in text
    assert "| saq-sam-w4a4 | final attention | 0.5 | 10,000 |  |" in text
    assert "| saq-sam-w4a4 | projected total | 10.0 h in total |  | 7.5 |" in text
    assert text.startswith("**m, 2 threads**, torch 2\n")
    assert other_tables.cost([]) == ""
    elsewhere = other_tables.cost([*lines, {**lines[-1], "machine": "A GPU"}]).split("\n\n")
    assert [block for block in elsewhere if block.startswith("**")][-1].startswith("**A GPU**")
    assert elsewhere[-1].count("h in total") == 1


def latency_line(**changes: str) -> dict[str, str]:
    line = {
        "machine": "CPU A",
        "subject": "sam-b",
        "part": "encoder",
        "prompts": "",
        "runtime": "onnxruntime",
    }
    line |= {"variant": "default", "seconds": "2", "fastest": "1", "slowest": "3", "ratio": "1.000"}
    return line | {"peak_gib": "6.5", "file_mb": "358.8"} | changes


def test_times_of_two_machines_are_not_compared(other_tables):
    lines = [
        latency_line(),
        latency_line(machine="CPU B", seconds="9"),
        latency_line(machine="CPU B", runtime="openvino", variant="nncf", ratio="4.500"),
        latency_line(machine="CPU B", seconds="8"),  # measured again: this one counts
    ]
    first, second = other_tables.latency(lines).split("\n\n**")
    assert first.startswith("**sam-b, encoder**, CPU A\n")
    assert "2000.0" in first
    assert second.startswith("sam-b, encoder**, CPU B\n")
    assert "9000.0" not in second
    assert "8000.0" in second
    assert "| OpenVINO, float32 precision | NNCF, 8 bits | 2000.0 | 1000.0 to 3000.0 | 4.50x |" in second


def test_times_on_a_gpu_have_a_table_for_each_part(other_tables):
    line = {"machine": "A GPU", "torch": "2.11", "subject": "sam-b", "part": "encoder", "prompts": ""}
    line |= {"variant": "float32", "bits": "", "compiled": "0", "seconds": "0.040331"}
    line |= {"fastest": "0.039", "slowest": "0.041", "ratio": "1.0"}
    packed = {**line, "variant": "torch-int8", "bits": "w8a8", "seconds": "0.03", "ratio": "1.344"}
    decoder = {**line, "part": "decoder", "prompts": "1"}
    lines = [line, {**packed, "ratio": "9"}, decoder, packed, {**packed, "compiled": "1", "ratio": "2"}]
    first, second = other_tables.gpu_latency(lines).split("\n\n**")
    assert first.startswith("**sam-b, encoder**, A GPU, torch 2.11\n")
    assert "|  | float32 | 40.3 | 39.0 to 41.0 | 1.00x |" in first
    assert "| `w8a8` | `torch-int8`, float32 elsewhere | 30.0 | 39.0 to 41.0 | 1.34x |" in first
    assert "float32 elsewhere, `torch.compile` | 30.0 | 39.0 to 41.0 | 2.00x |" in first
    assert "9.00x" not in first
    assert second.startswith("sam-b, decoder**, 1 prompt, A GPU, torch 2.11\n")


def test_the_short_table_of_speed_is_of_one_machine_that_has_all(other_tables):
    def complete(machine: str, seconds: str) -> list[dict[str, str]]:
        return [
            latency_line(
                machine=machine, part=part, runtime=runtime, variant=variant, seconds=seconds, prompts=prompts
            )
            for runtime, variant in other_tables._SHOWN_SPEED
            for part, prompts in (("encoder", ""), ("decoder", "32"))
        ]

    lines = [*complete("CPU A", "2")[1:], *complete("CPU B", "3"), *complete("CPU C", "4")]
    table = other_tables.speed(lines)
    assert len(table.splitlines()) == 2 + len(other_tables._SHOWN_SPEED)
    assert "3.00 (1.0x)" in table
    assert "4.00" not in table
    assert other_tables.speed(complete("CPU A", "2")[1:]) == ""


def test_accuracy_in_runtimes_has_a_table_for_each_machine(other_tables):
    line = {
        "machine": "CPU A",
        "recipe": "mse-deploy-w8a8-mixed",
        "settings": "encoder_products=quantized",
        "runtime": "torch-int8",
        "data": "coco_val",
    }
    line |= {
        "miou": "0.59612",
        "mask_iou": "0.98514",
        "file_mb": "7.766",
        "model_hash": "bbbb",
        "images": "153",
    }
    nncf = {
        **line,
        "machine": "CPU B",
        "recipe": "nncf-w8a8",
        "settings": "",
        "runtime": "openvino",
        "mask_iou": "",
    }
    earlier = {**line, "machine": "CPU C", "model_hash": "aaaa"}
    trial = {**line, "images": "2", "miou": "0.9"}
    found = other_tables.deployed([earlier, line, trial, nncf]).split("\n\n")
    assert [found[0], found[2]] == ["CPU A", "CPU B"]
    own = "`mse-deploy-w8a8-mixed`, `encoder_products=quantized` | torch, `torch-int8`"
    assert f"| {own} | coco_val | 0.5961 | 0.9851 | 7.766 |" in found[1]
    assert "0.9000" not in found[1]
    assert "| `nncf-w8a8` | OpenVINO | coco_val | 0.5961 |  | 7.766 |" in found[3]
    assert other_tables.deployed([]) == ""


def test_tasks_have_a_line_a_figure_and_a_column_a_model(other_tables):
    def line(
        case: str, metric: str, value: str, method: str = "float", bits: str = "w32a32"
    ) -> dict[str, str]:
        found = {"case": case, "data": "coco_val", "images": "40", "metric": metric, "value": value}
        return {**found, "method": method, "bits": bits, "model_hash": "bbbb"}

    table = other_tables.tasks(
        [
            line("point", "miou", "0.3") | {"model_hash": "aaaa"},
            line("box", "miou", "0.5", "saq-sam", "w4a4"),
            line("box", "miou", "0.4"),
            line("box", "miou", "0.6"),
            line("box", "miou", "0.55", "mse", "w6a6"),
            line("semantic", "semantic_miou", "0.3"),
            line("box", "instances", "12"),
        ]
    )
    assert table.splitlines() == [
        "|  | data (images) |  | float | `mse` w6a6 | `saq-sam` w4a4 |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        "| `box` | coco_val (40) | mean IoU | 0.600 | 0.550 | 0.500 |",
        "| `semantic` | coco_val (40) | mean IoU of classes | 0.300 |  |  |",
    ]
    assert other_tables.tasks([]) == ""


def test_the_cost_of_evaluating_has_a_table_for_each_machine(other_tables):
    line = {
        "machine": "CPU A, 2 threads",
        "model": "sam-mini",
        "processes": "2",
        "threads": "1",
        "prompt": "box",
        "images": "5000",
    }
    line |= {"images_per_second": "4.256", "outside_share": "0.0512", "resident_mib": "512.4"}
    found = other_tables.evaluate_cost([line, {**line, "machine": "CPU B, 2 threads"}]).split("\n\n")
    assert [found[0], found[2]] == ["CPU A", "CPU B"]
    assert found[1].splitlines()[-1] == "| sam-mini | 2 | 1 | box | 5,000 | 4.26 | 5.1 % | 512 |"
