from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from saqsam.data.rle import encode_mask, rle_text
from saqsam.evaluation.record_schema import (
    ANY,
    IMAGE_SIZE,
    MASK_COUNTS,
    AtLeast,
    MapOf,
    Nullable,
    OneOf,
    Schema,
    check_schema,
    check_size,
)
from support.json_values import json_values

MASK = rle_text(encode_mask(np.eye(4, 6, dtype=bool)))


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [0, 0.5], [False, "0.5", None, []]),
        (str, ["", "x"], [1, None, ["x"]]),
        (bool, [True], [1, "true", None]),
        ([int], [[], [1, 2]], [{}, [1, "2"], None]),
        ((int, str), [[1, "x"]], [[1], [1, "x", 2], ["x", 1]]),
        ({"a": int, "b?": str}, [{"a": 1}, {"a": 1, "b": ""}], [{}, {"b": ""}, {"a": 1, "c": 2}, []]),
        (MapOf(int), [{}, {"x": 1}], [{"x": None}, [1]]),
        (Nullable(int), [None, 1], ["x"]),
        (OneOf(((int, int), str)), [[1, 2], "x"], [[1], 3]),
        (AtLeast(2, int), [[1, 2], [1, 2, 3]], [[1], ["1", "2"]]),
        (IMAGE_SIZE, [[4, 6]], [[6, 4], [4], None]),
        (MASK_COUNTS, [MASK], ["", MASK[:-1], "?", 3, None]),
        (ANY, [None, [1]], []),
    ],
)
def test_values_are_accepted_by_their_layout_alone(schema: Schema, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check_schema(value, schema, (4, 6), "value")
    for value in bad:
        with pytest.raises(ValueError, match=r"^(value|run lengths)[^:]*: expected"):
            check_schema(value, schema, (4, 6), "value")


@pytest.mark.parametrize("size", [None, [4], [0, 6], [4.0, 6], [2**20, 2**20], ["4", "6"]])
def test_sizes_that_no_image_has_are_refused(size: Any) -> None:
    assert check_size([4, 6]) == (4, 6)
    with pytest.raises(ValueError, match=r"^size"):
        check_size(size)


@settings(max_examples=200, derandomize=True)
@given(json_values)
def test_any_value_is_accepted_or_refused_in_a_short_line(value: Any) -> None:
    schema = {"a": [(int, Nullable(MASK_COUNTS))], "b?": MapOf(float)}
    message = ""
    try:
        check_schema(value, schema, (4, 6), "value")
    except ValueError as error:
        message = str(error)
    assert len(message) < 300
    assert "\n" not in message
    assert message or set(value) <= {"a", "b"}
