"""Logs are read back strictly: they may come from a folder that somebody else has written."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings

from saqsam.ptq.log import AttentionClipping, Clip, UnitLog, read_clipping, read_unit_log
from support.json_values import json_values


def test_logs_survive_as_plain_values() -> None:
    log = UnitLog("neck", [1, 2], [0.5, 0.25], 0.1)
    assert read_unit_log(dataclasses.asdict(log)) == log
    clipping = AttentionClipping("a", (Clip("q_proj.input_quantizer", None, -1.0, 1.0),), 0.2, 0.1)
    plain = {**dataclasses.asdict(clipping), "clips": [dataclasses.asdict(clip) for clip in clipping.clips]}
    assert read_clipping(plain) == clipping


@settings(max_examples=200, derandomize=True)
@given(json_values)
def test_other_plain_values_are_refused_in_a_short_line(value: Any) -> None:
    for read in (read_unit_log, read_clipping):
        with pytest.raises(ValueError, match=r"expected|cannot be") as caught:
            read(value)
        assert len(str(caught.value)) < 300
