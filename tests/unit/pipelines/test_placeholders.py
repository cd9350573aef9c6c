"""Every placeholder form, alone, in text, in JSON values and in command lines."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.pipelines.ir import ArtifactType
from shallop.pipelines.placeholders import Placeholders, local_path
from shallop.pipelines.values import Artifact

DATASET = ArtifactType(schema_title="system.Dataset", schema_version="0.0.1")
DATA = Artifact("data", "s3://bucket/data", DATASET, {"rows": 3, "tags": ["a"]})
INPUT = {
    "outputs": {
        "parameters": {"p": {"outputFile": "/root/t/parameters/p"}},
        "artifacts": {"o": {"artifacts": [{"name": "o", "uri": "/root/t/o", "metadata": {"k": 1}}]}},
        "outputFile": "/root/t/output_metadata.json",
    }
}
PLACEHOLDERS = Placeholders(
    parameters={"s": 'say "hi"', "n": 3.0, "f": 1.5, "b": True, "l": [1, 2.0], "d": {"a": 1}, "none": None},
    artifacts={"data": [DATA], "many": [DATA, DATA], "absent": []},
    names={"pipeline_job_name": "my run", "pipeline_task_uuid": "u-1", "workspace_path": "/kfp-workspace"},
    executor_input=INPUT,
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{{$}}", json.dumps(INPUT)),
        ("{{$.inputs.parameters['s']}}", 'say "hi"'),
        ('{{$.inputs.parameters["s"]}}', 'say "hi"'),
        ("{{$.inputs.parameters['n']}}", "3"),
        ("{{$.inputs.parameters['f']}}", "1.5"),
        ("{{$.inputs.parameters['b']}}", "true"),
        ("{{$.inputs.parameters['l']}}", "[1, 2]"),
        ("{{$.inputs.parameters['d']}}", '{"a": 1}'),
        ("{{$.inputs.parameters['none']}}", ""),
        ("a={{$.inputs.parameters['n']}},b={{$.inputs.parameters['b']}}", "a=3,b=true"),
        ("{{$.inputs.artifacts['data'].uri}}", "s3://bucket/data"),
        ("{{$.inputs.artifacts['data'].path}}", "/s3/bucket/data"),
        ("{{$.inputs.artifacts['data'].name}}", "data"),
        ("{{$.inputs.artifacts['data'].metadata}}", '{"rows": 3, "tags": ["a"]}'),
        ("{{$.inputs.artifacts['data'].metadata['rows']}}", "3"),
        ("{{$.inputs.artifacts['absent'].uri}}", ""),
        ("{{$.outputs.artifacts['o'].uri}}", "/root/t/o"),
        ("{{$.outputs.artifacts['o'].path}}", "/root/t/o"),
        ("{{$.outputs.artifacts['o'].metadata['k']}}", "1"),
        ("{{$.outputs.parameters['p'].output_file}}", "/root/t/parameters/p"),
        ("{{$.outputs.output_file}}", "/root/t/output_metadata.json"),
        ("{{$.outputMetadataUri}}", "/root/t/output_metadata.json"),
        ("{{$.pipeline_job_name}}/{{$.pipeline_task_uuid}}", "my run/u-1"),
        ("{{$.inputs.parameters['unknown']}}", "{{$.inputs.parameters['unknown']}}"),
        ("{{$.pipeline_google_cloud_location}}", "{{$.pipeline_google_cloud_location}}"),
        ("{{ jinja }} {{$ x }} $0", "{{ jinja }} {{$ x }} $0"),
    ],
)
def test_text(template: str, expected: str) -> None:
    assert PLACEHOLDERS.text(template) == expected


def test_the_list_form_gives_all_artifacts() -> None:
    assert [one["uri"] for one in json.loads(PLACEHOLDERS.text("{{$.inputs.artifacts['many']}}"))] == [DATA.uri] * 2


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{$.inputs.parameters['n']}}", 3.0),
        ("{{$.inputs.parameters['l']}}", [1, 2.0]),
        ({"a": ["{{$.inputs.parameters['s']}}", 1]}, {"a": ['say "hi"', 1]}),
        ("x {{$.inputs.parameters['s']}}", 'x say "hi"'),
        ({"{{$.inputs.parameters['s']}}": None}, {'say "hi"': None}),
        (5, 5),
    ],
)
def test_values_keep_their_type_and_quotes_break_nothing(template: Any, expected: Any) -> None:
    assert PLACEHOLDERS.value(template) == expected


def if_present(name: str, then: Any, otherwise: Any = None) -> str:
    return json.dumps({"IfPresent": {"InputName": name, "Then": then, "Else": otherwise}})


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["{{$}}", "x{{$}}"], ["{{$}}", "x" + json.dumps(INPUT)]),
        (['{"Concat": ["a", "{{$.inputs.parameters[\'n\']}}", "b"]}'], ["a3b"]),
        ([if_present("s", ["--s", "{{$.inputs.parameters['s']}}"])], ["--s", 'say "hi"']),
        ([if_present("none", ["--s"], "no")], ["no"]),
        ([if_present("none", ["--s"])], []),
        ([if_present("data", "{{$.inputs.artifacts['data'].uri}}")], ["s3://bucket/data"]),
        ([if_present("absent", "x", ["y", "z"])], ["y", "z"]),
        ([json.dumps({"Concat": ["a", json.loads(if_present("n", "b")), if_present("none", "c", "d")]})], ["abd"]),
        ([if_present("n", ["x", {"Concat": ["p", "q"]}])], ["x", "pq"]),
        (['{"IfPresent": 5}', '{"Concat": 1}', '{"IfPresent"'], ['{"IfPresent": 5}', '{"Concat": 1}', '{"IfPresent"']),
        (["", "-c"], ["", "-c"]),
    ],
)
def test_command_lines(argv: list[str], expected: list[str]) -> None:
    assert PLACEHOLDERS.argv(argv) == expected


def test_replaced_text_is_not_searched_again() -> None:
    tricky = Placeholders({"x": "{{$.inputs.parameters['y']}}", "y": "secret"})
    assert tricky.text("{{$.inputs.parameters['x']}}") == "{{$.inputs.parameters['y']}}"


@given(st.text(max_size=80))
def test_text_without_known_placeholders_is_unchanged(text: str) -> None:
    empty = Placeholders({})
    assert empty.text(text) == text
    assert empty.value(text) == text


@given(st.text(max_size=40))
def test_a_parameter_survives_any_content(value: str) -> None:
    assert Placeholders({"x": value}).argv(["--x={{$.inputs.parameters['x']}}"]) == [f"--x={value}"]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/plain/path", "/plain/path"),
        ("gs://b/k", "/gcs/b/k"),
        ("s3://b/k", "/s3/b/k"),
        ("minio://b/k", "/minio/b/k"),
        ("oci://reg/m:1", "/oci/reg_m:1/models"),
        ("file:///x", "/x"),
        ("https://h/x", "https://h/x"),
    ],
)
def test_local_paths(uri: str, path: str) -> None:
    assert local_path(uri) == path


def test_an_artifact_in_the_workspace_is_found_there() -> None:
    marked = {"_kfp_workspace": True}
    assert local_path("s3://b/k", marked) == "/kfp-workspace/.artifacts/s3/b/k"
    assert local_path("/data/x", marked) == "/kfp-workspace/.artifacts/data/x"
    assert local_path("https://h/x", marked) == "/kfp-workspace/.artifacts/https://h/x"
