"""JSON paths of printer columns."""

from __future__ import annotations

import pytest

from shallop.embedded.apiserver.jsonpath import compile_path


@pytest.mark.parametrize(
    ("path", "values"),
    [(".a[-1:].t", ["y"]), (".a[0:1].t", ["x"]), (".a[:].t", ["x", "y"]), (".a[-1].t", ["y"]), (".none[-1:].t", [])],
)
def test_slices_select_parts_of_lists(path: str, values: list[str]) -> None:
    assert compile_path(path)({"a": [{"t": "x"}, {"t": "y"}]}) == values
