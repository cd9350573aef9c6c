"""Reading what a component wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop_pod.launcher import Task
from shallop_pod.outputs import OutputError, content_digest, parse_parameter, read_outputs


def task(
    folder: Path, parameters: dict[str, str] | None = None, artifacts: list[str] | None = None, **more: Any
) -> Task:
    outputs = {
        "outputFile": str(folder / "executor_output.json"),
        "parameters": {name: {"outputFile": str(folder / name)} for name in parameters or {}},
        "artifacts": {
            name: {"artifacts": [{"name": name, "type": {"schemaTitle": "system.Model"}, "uri": str(folder / name)}]}
            for name in artifacts or []
        },
    }
    return Task("train", str(folder), {"outputs": outputs}, parameters or {}, **more)


def executor_output(folder: Path, content: dict[str, Any]) -> None:
    (folder / "executor_output.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", "NUMBER_INTEGER", 3),
        (" 3\n", "NUMBER_INTEGER", 3),
        ("3.0", "NUMBER_INTEGER", 3),
        ("3", "NUMBER_DOUBLE", 3.0),
        ("1e-3", "NUMBER_DOUBLE", 0.001),
        ("True", "BOOLEAN", True),
        ("false\n", "BOOLEAN", False),
        ("[1, 2]", "LIST", [1, 2]),
        ('{"a": null}', "STRUCT", {"a": None}),
        (" text\n", "STRING", " text\n"),
        ("", "STRING", ""),
    ],
)
def test_a_parameter_file_is_read_by_its_type(text: str, kind: str, value: object) -> None:
    found = parse_parameter("x", text, kind)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("3.5", "NUMBER_INTEGER"), ("", "NUMBER_INTEGER"), ("yes", "BOOLEAN"), ("{}", "LIST"), ("nan", "NUMBER_DOUBLE")],
)
def test_a_parameter_of_the_wrong_type_is_named(text: str, kind: str) -> None:
    with pytest.raises(OutputError, match="Output parameter 'loss'"):
        parse_parameter("loss", text, kind)


@given(st.integers())
def test_integers_survive(value: int) -> None:
    assert parse_parameter("x", str(value), "NUMBER_INTEGER") == value


def test_the_executors_file_wins_over_parameter_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    executor_output(tmp_path, {"parameterValues": {"a": 7.0}})
    parameters, _ = read_outputs(task(tmp_path, {"a": "NUMBER_INTEGER", "b": "NUMBER_INTEGER"}))
    assert parameters == {"a": 7, "b": 2}
    assert isinstance(parameters["a"], int)


def test_large_integers_keep_every_digit(tmp_path: Path) -> None:
    executor_output(tmp_path, {"parameterValues": {"a": 2**63 + 1}})
    assert read_outputs(task(tmp_path, {"a": "NUMBER_INTEGER"}))[0] == {"a": 2**63 + 1}


def test_a_missing_parameter_fails_unless_it_is_optional(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Output parameter 'a' was not written"):
        read_outputs(task(tmp_path, {"a": "STRING"}))
    assert read_outputs(task(tmp_path, {"a": "STRING"}, optional_outputs=frozenset({"a"})))[0] == {}


def test_a_broken_executor_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "executor_output.json").write_text("{")
    with pytest.raises(OutputError, match="no JSON"):
        read_outputs(task(tmp_path))


def test_metadata_is_kept_as_it_is_and_extends_what_was_declared(tmp_path: Path) -> None:
    metadata = {"flag": True, "list": [1, {"a": False}], "text": "x", "count": 3, "nan": math.nan}
    executor_output(tmp_path, {"artifacts": {"m": {"artifacts": [{"name": "", "uri": "", "metadata": metadata}]}}})
    (artifact,) = read_outputs(task(tmp_path, artifacts=["m"]))[1]["m"]
    assert artifact["metadata"] == {**metadata, "nan": "NaN"}
    assert artifact["name"] == "m" and artifact["uri"] == str(tmp_path / "m")
    assert artifact["digest"] is None and artifact["sizeBytes"] == 0


def test_a_custom_path_is_copied_to_the_artifact(tmp_path: Path) -> None:
    source = tmp_path / "elsewhere"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "weights").write_bytes(b"12345")
    executor_output(tmp_path, {"artifacts": {"m": {"artifacts": [{"custom_path": str(source)}]}}})
    (artifact,) = read_outputs(task(tmp_path, artifacts=["m"]))[1]["m"]
    assert (tmp_path / "m" / "sub" / "weights").read_bytes() == b"12345"
    assert artifact["sizeBytes"] == 5 and artifact["digest"] == content_digest(str(source))[0]
    assert not list(tmp_path.glob("*.part"))


def test_an_artifact_elsewhere_is_taken_on_trust(tmp_path: Path) -> None:
    executor_output(tmp_path, {"artifacts": {"m": {"artifacts": [{"uri": "s3://bucket/model"}]}}})
    (artifact,) = read_outputs(task(tmp_path, artifacts=["m"]))[1]["m"]
    assert artifact["uri"] == "s3://bucket/model" and artifact["digest"] is None


def test_digests_tell_contents_apart_and_nothing_else(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, str]) -> str:
        for relative, text in files.items():
            path = tmp_path / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(tmp_path / name)

    one = folder("one", {"a": "1", "b/c": "2"})
    same = folder("same", {"b/c": "2", "a": "1"})
    assert content_digest(one) == content_digest(same)
    assert content_digest(one)[1] == 2
    others = [
        folder("x", {"a": "1", "b/c": "3"}),
        folder("y", {"a": "1", "b/d": "2"}),
        folder("z", {"a": "12", "b/c": ""}),
    ]
    assert len({content_digest(path)[0] for path in [one, *others]}) == 4
    assert content_digest(str(tmp_path / "absent")) == (None, 0)
