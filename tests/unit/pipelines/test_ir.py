"""Packages and documents become frozen values, or a message that names the field."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from typing import Any

import pytest
import yaml

from shallop.errors import BadRequestError, TooLargeError
from shallop.pipelines import ir, package
from shallop.pipelines.ir import load_package, parse_documents, parse_pipeline


def spec(**changes: Any) -> dict[str, Any]:
    base = {
        "schemaVersion": "2.1.0",
        "pipelineInfo": {"name": "p"},
        "root": {"dag": {"tasks": {"a": {"componentRef": {"name": "c"}, "dependentTasks": ["b"]}}}},
        "components": {"c": {"executorLabel": "e"}},
        "deploymentSpec": {"executors": {"e": {"container": {"image": "python:3.11", "args": ["x"]}}}},
    }
    return {**base, **changes}


def text(*documents: dict[str, Any]) -> bytes:
    return yaml.safe_dump_all(documents).encode()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_yaml", ".yaml"), content)
    return buffer.getvalue()


def tarred(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/").replace("_yaml", ".yaml"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_a_package_is_read_from_every_format() -> None:
    platform = {"platforms": {"kubernetes": {"pipelineConfig": {"workspace": {"size": "1Gi"}}}}}
    document = text(spec(), platform)
    packages = [
        document,
        zipped(other_yaml=b"x: 1", pipeline_yaml=document),
        tarred(a__other_yaml=b"x: 1", a__pipeline_yaml=document),
        tarred(only_yaml=document),
        gzip.compress(document),
        json.dumps({"pipeline_spec": spec(), "platform_spec": platform}).encode(),
    ]
    for packed in packages:
        assert load_package(packed, "p.yaml") == (spec(), platform)
    assert load_package(json.dumps(spec()).encode(), "p.json") == (spec(), {})


def test_the_values_are_typed_and_the_document_is_kept() -> None:
    pipeline = parse_pipeline(spec())
    task = pipeline.root.dag.tasks["a"]
    assert task.dependent_tasks == ("b",)
    assert pipeline.executor_of(pipeline.component_of(task)).container.args == ("x",)
    assert pipeline.raw == spec()


def test_a_default_of_null_is_no_default_and_false_is_one() -> None:
    parameters = {"n": {"defaultValue": None}, "f": {"defaultValue": False}, "old": {"type": "INT"}}
    pipeline = parse_pipeline(spec(root={"dag": {"tasks": {}}, "inputDefinitions": {"parameters": parameters}}))
    definitions = pipeline.root.input_definitions.parameters
    assert [definitions[name].has_default for name in parameters] == [False, True, False]
    assert definitions["old"].kind == "NUMBER_INTEGER"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**spec(), "foo": 1}, "the document: Object contains unknown field `foo`"),
        (spec(components={"c": {"executorLabel": 5}}), "components.c.executorLabel: Expected `str`, got `int`"),
        (spec(components={"c": {}, "d": {"x": 1}}), "components.d: Object contains unknown field `x`"),
        (spec(root={"dag": {"tasks": {"t": {}}}}), "root.dag.tasks.t: Object missing required field `componentRef`"),
        (spec(schemaVersion="2.0.0"), "schemaVersion: '2.0.0' is not supported, 2.1.0 is"),
        (spec(root=None), "root: Expected `object`, got `null`"),
        ({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow"}, "This is an Argo Workflow"),
        ({}, "schemaVersion: '' is not supported"),
    ],
)
def test_what_is_wrong_is_said_with_the_field(document: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_pipeline(document)
    assert caught.value.message.startswith(message)


def test_platform_errors_name_their_field() -> None:
    platform = {"platforms": {"kubernetes": {"pipelineConfig": {"nope": 1}}}}
    with pytest.raises(BadRequestError, match=r"platforms\.kubernetes\.pipelineConfig: .*`nope`"):
        parse_pipeline(spec(), platform)
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"e": 3}}}}}
    with pytest.raises(BadRequestError, match=r"deploymentSpec\.executors\.e: Expected `object`, got `int`"):
        parse_pipeline(spec(), platform)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"\x80\x81", "not valid YAML"),
        (b"", "found 0 documents"),
        (b"- 1", "expected one object"),
        (b"a: 1\n---\nb: 1\n---\nc: 1", "found 3 documents"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"PK\x03\x04rubbish", "the archive cannot be read"),
        (b"\x1f\x8brubbish", "the archive cannot be read"),
        (zipped(readme=b"x"), "no pipeline.yaml"),
        (b"[" * 100_000, ""),
    ],
)
def test_broken_packages_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        load_package(content, "p.yaml")
    assert message in caught.value.message


def test_a_package_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_PACKAGE_BYTES", 1000)
    for packed in (zipped(p_yaml=b"a" * 2000), tarred(p_yaml=b"a" * 2000), gzip.compress(b"a" * 2000), b"a" * 2000):
        with pytest.raises(TooLargeError):
            load_package(packed, "p")


def test_aliases_that_expand_without_end_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    for content in ("\n".join(lines), "a: &a [*a]"):
        with pytest.raises(BadRequestError, match="aliases expand"):
            parse_documents(content)


def test_an_unquoted_date_stays_text() -> None:
    assert parse_documents("day: 2013-01-01") == ({"day": "2013-01-01"}, {})


def test_retries_back_off_up_to_their_maximum() -> None:
    policy = ir.RetryPolicy(max_retry_count=9, backoff_duration="1.5s", backoff_factor=2, backoff_max_duration="5s")
    assert [policy.delay_s(retry) for retry in (1, 2, 3, 1000)] == [1.5, 3.0, 5.0, 5.0]
    with pytest.raises(BadRequestError, match="'1m' is not a duration"):
        ir.parse_duration_s("1m")
