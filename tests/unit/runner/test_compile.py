"""What users type after ``shallop run``, before anything is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shallop.errors import ShallopError
from shallop.runner.compile import load_pipeline, parse_parameters
from shallop.settings import Settings


@pytest.mark.parametrize("name", ["absent.py", "absent.yaml", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ShallopError, match="no such file"):
        load_pipeline(tmp_path / name, Settings(home=tmp_path))


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.py").touch()
    with pytest.raises(ShallopError, match="--python /no/such/python: cannot be started"):
        load_pipeline(tmp_path / "p.py", Settings(home=tmp_path), python="/no/such/python")


def test_parameters_are_read_by_their_types() -> None:
    parameters = {name: {"parameterType": kind} for name, kind in (("a", "STRING"), ("b", "LIST"), ("c", "BOOLEAN"))}
    document: dict[str, Any] = {"root": {"inputDefinitions": {"parameters": parameters}}}
    assert parse_parameters(["a=[1]=2", "b=[1]", "c=null", "other=x"], document) == {
        "a": "[1]=2",
        "b": [1],
        "c": None,
        "other": "x",
    }
    for wrong, said in (("a", "write NAME=VALUE"), ("b=[1", "'\\[1' is not of type LIST")):
        with pytest.raises(ShallopError, match=said):
            parse_parameters([wrong], document)
