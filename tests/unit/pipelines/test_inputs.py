"""How the inputs of tasks are found, and what a component is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.pipelines.inputs import (
    InputError,
    Scope,
    coerce,
    collected_outputs,
    dag_outputs,
    executor_input,
    iteration_inputs,
    loop_items,
    parameters_with_defaults,
    resolve_importer,
    resolve_inputs,
    resolve_kubernetes,
    root_inputs,
)
from shallop.pipelines.ir import ArtifactType, Component, Importer, Task, parse_pipeline
from shallop.pipelines.values import Artifact, RunInfo, Values, plain

RUN = RunInfo("run-1", "my run", "p-abcde", "/root", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
DATA = Artifact("d", "/data", ArtifactType(schema_title="system.Dataset"))


def scope(inputs: Values | None = None, **results: Values) -> Scope:
    return Scope(RUN, "train", "uuid-1", inputs or Values(), results, lambda producer: {"state": "COMPLETE"})


def component(dag: bool = False, artifacts: dict[str, Any] | None = None, **parameters: Any) -> Component:
    raw = {
        "inputDefinitions": {"parameters": parameters, "artifacts": artifacts or {}},
        **({"dag": {}} if dag else {"executorLabel": "e"}),
    }
    return msgspec.convert(raw, Component)


def task(artifacts: dict[str, Any] | None = None, more: dict[str, Any] | None = None, **parameters: Any) -> Task:
    inputs = {"parameters": parameters, "artifacts": artifacts or {}}
    return msgspec.convert({"componentRef": {"name": "c"}, "inputs": inputs, **(more or {})}, Task)


def constant(value: Any) -> dict[str, Any]:
    return {"runtimeValue": {"constant": value}}


STRING = {"parameterType": "STRING"}
OPTIONAL = {"parameterType": "STRING", "isOptional": True}
DEFAULT = {"parameterType": "NUMBER_INTEGER", "isOptional": True, "defaultValue": 7.0}


def test_every_source_of_a_parameter() -> None:
    definition = component(
        a=STRING, b=STRING, c={"parameterType": "NUMBER_INTEGER"}, d=STRING, s={"parameterType": "TASK_FINAL_STATUS"}
    )
    sources = task(
        a=constant("x"),
        b={"componentInputParameter": "p"},
        c={"taskOutputParameter": {"producerTask": "t", "outputParameterKey": "o"}},
        d={"componentInputParameter": "q", "parameterExpressionSelector": 'parseJson(string_value)["k"]'},
        s={"taskFinalStatus": {"producerTask": "t"}},
    )
    given_scope = scope(Values({"p": "y", "q": {"k": 1}}), t=Values({"o": 4}))
    found = resolve_inputs(given_scope, sources, definition)
    assert found.parameters == {"a": "x", "b": "y", "c": 4, "d": "1", "s": {"state": "COMPLETE"}}


def test_a_constant_sees_the_other_inputs_value_first() -> None:
    definition = component(msg=STRING, config={"parameterType": "STRUCT"}, n={"parameterType": "LIST"})
    sources = task(
        msg=constant("v={{$.inputs.parameters['pipelinechannel--v']}} in {{$.pipeline_job_name}}"),
        config=constant({"text": "{{$.inputs.parameters['pipelinechannel--v']}}"}),
        n=constant("{{$.inputs.parameters['pipelinechannel--l']}}"),
        **{
            "pipelinechannel--v": {"componentInputParameter": "v"},
            "pipelinechannel--l": {"componentInputParameter": "l"},
        },
    )
    found = resolve_inputs(scope(Values({"v": 'say "hi"', "l": [1.0]})), sources, definition).parameters
    assert found["msg"] == 'v=say "hi" in my run'
    assert found["config"] == {"text": 'say "hi"'}
    assert found["n"] == [1]
    assert found["pipelinechannel--v"] == 'say "hi"'


def test_null_is_dropped_where_the_input_is_optional_and_an_error_where_not() -> None:
    sources = task(x={"componentInputParameter": "p"})
    parent = scope(Values({"p": None}))
    assert resolve_inputs(parent, sources, component(x=OPTIONAL)).parameters == {}
    assert resolve_inputs(parent, sources, component(x=DEFAULT)).parameters == {}
    with pytest.raises(InputError, match="Input 'x' of task 'train': parameter 'p' is null"):
        resolve_inputs(parent, sources, component(x=STRING))


def test_omitted_inputs_of_a_dag_are_defaults_or_null_and_of_a_container_absent() -> None:
    assert resolve_inputs(scope(), task(), component(dag=True, x=OPTIONAL, y=DEFAULT)).parameters == {"x": None, "y": 7}
    container = component(x=OPTIONAL, y=DEFAULT)
    assert resolve_inputs(scope(), task(), container).parameters == {}
    assert parameters_with_defaults(container, Values({"x": "a"})) == {"x": "a", "y": 7}
    with pytest.raises(InputError, match="Input 'x' of task 'train': required and not given"):
        resolve_inputs(scope(), task(), component(x=STRING))


def test_a_missing_output_is_named() -> None:
    sources = task(x={"taskOutputParameter": {"producerTask": "t", "outputParameterKey": "o"}})
    with pytest.raises(InputError, match="task 't' gave no output 'o'"):
        resolve_inputs(scope(t=Values()), sources, component(x=STRING))
    assert resolve_inputs(scope(), sources, component(x=DEFAULT)).parameters == {}


def test_artifacts_come_from_the_dag_and_from_siblings() -> None:
    kind = {"artifactType": {"schemaTitle": "system.Dataset"}}
    definition = component(artifacts={"a": kind, "b": kind, "c": {**kind, "isOptional": True}})
    sources = task(
        artifacts={
            "a": {"componentInputArtifact": "p"},
            "b": {"taskOutputArtifact": {"producerTask": "t", "outputArtifactKey": "o"}},
            "c": {"componentInputArtifact": "absent"},
        }
    )
    found = resolve_inputs(scope(Values({}, {"p": [DATA]}), t=Values({}, {"o": [DATA, DATA]})), sources, definition)
    assert found.artifacts == {"a": [DATA], "b": [DATA, DATA]}
    with pytest.raises(InputError, match="Input artifact 'a' of task 'train': 'p' gave none"):
        resolve_inputs(scope(t=Values({}, {"o": [DATA]})), sources, definition)


@pytest.mark.parametrize("is_list", [True, False])
def test_an_empty_list_of_artifacts_is_a_value_only_for_a_list_input(is_list: bool) -> None:
    definition = component(artifacts={"a": {"isArtifactList": is_list}})
    sources = task(artifacts={"a": {"componentInputArtifact": "p"}})
    parent = scope(Values({}, {"p": []}))
    if is_list:
        assert resolve_inputs(parent, sources, definition).artifacts == {"a": []}
    else:
        with pytest.raises(InputError, match="'p' gave none"):
            resolve_inputs(parent, sources, definition)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (5, "STRING", "5"),
        ({"a": 1.0}, "STRING", '{"a": 1}'),
        (True, "STRING", "true"),
        (3.0, "NUMBER_INTEGER", 3),
        ("3", "NUMBER_INTEGER", 3),
        (3.5, "NUMBER_DOUBLE", 3.5),
        (3.0, "NUMBER_DOUBLE", 3),
        ("true", "BOOLEAN", True),
        ("[1, 2.0]", "LIST", [1, 2]),
        ('{"a": 1}', "STRUCT", {"a": 1}),
        ([{"a": 1.0}], "LIST", [{"a": 1}]),
        ("anything", "", "anything"),
    ],
)
def test_values_fit_their_type(value: Any, kind: str, expected: Any) -> None:
    found = coerce(value, kind, "x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3.5, "NUMBER_INTEGER"),
        (True, "NUMBER_INTEGER"),
        ("x", "NUMBER_DOUBLE"),
        (1, "BOOLEAN"),
        ({}, "LIST"),
        ("[]", "STRUCT"),
        (None, "LIST"),
    ],
)
def test_values_that_do_not_fit_are_refused(value: Any, kind: str) -> None:
    with pytest.raises(InputError, match=f"x: expected {kind}, got "):
        coerce(value, kind, "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_plain_changes_no_value_and_leaves_no_integral_double(value: Any) -> None:
    found = plain(value)
    assert found == value
    assert plain(found) == found
    assert not (isinstance(found, float) and found.is_integer() and abs(found) < 2**53)


def loop(**iterator: Any) -> Task:
    return task(more={"taskInfo": {"name": "loop"}, **iterator}, p={"componentInputParameter": "p"})


def test_items_of_loops() -> None:
    raw = loop(parameterIterator={"items": {"raw": "[1, \"{{$.inputs.parameters['p']}}\"]"}, "itemInput": "i"})
    assert loop_items(raw, Values({"p": [2]})) == [1, [2]]
    named = loop(parameterIterator={"items": {"inputParameter": "p"}, "itemInput": "i"})
    assert loop_items(named, Values({"p": ["a"]})) == ["a"]
    assert loop_items(named, Values({"p": '["a", 1]'})) == ["a", 1]
    for wrong in ({}, "x", 5):
        with pytest.raises(InputError, match="Items of loop 'loop': expected LIST"):
            loop_items(named, Values({"p": wrong}))
    with pytest.raises(InputError, match="'p' has no value, a list is needed"):
        loop_items(named, Values({"p": None}))
    artifacts = loop(artifactIterator={"items": {"inputArtifact": "a"}, "itemInput": "i"})
    assert loop_items(artifacts, Values({}, {"a": [DATA, DATA]})) == [DATA, DATA]
    assert iteration_inputs(artifacts, component(), Values({"p": 1}), DATA) == Values({"p": 1}, {"i": [DATA]})


def test_an_item_of_an_untyped_list_is_text_that_later_types_understand() -> None:
    named = loop(parameterIterator={"items": {"inputParameter": "p"}, "itemInput": "i"})
    inner = iteration_inputs(named, component(dag=True, i=STRING), Values(), {"a": 1.0})
    assert inner.parameters == {"i": '{"a": 1}'}
    sources = task(x={"componentInputParameter": "i", "parameterExpressionSelector": 'parseJson(string_value)["a"]'})
    assert resolve_inputs(scope(inner), sources, component(x={"parameterType": "NUMBER_INTEGER"})).parameters == {
        "x": 1
    }


def test_dag_outputs_take_the_first_producer_that_ended_well() -> None:
    outputs = {
        "parameters": {
            "one": {"valueFromParameter": {"producerSubtask": "a", "outputParameterKey": "o"}},
            "of": {
                "valueFromOneof": {
                    "parameterSelectors": [
                        {"producerSubtask": "skipped", "outputParameterKey": "o"},
                        {"producerSubtask": "a", "outputParameterKey": "o"},
                    ]
                }
            },
            "none": {"valueFromParameter": {"producerSubtask": "skipped", "outputParameterKey": "o"}},
        },
        "artifacts": {
            "m": {
                "artifactSelectors": [
                    {"producerSubtask": "skipped", "outputArtifactKey": "m"},
                    {"producerSubtask": "a", "outputArtifactKey": "m"},
                ]
            }
        },
    }
    dag = msgspec.convert({"dag": {"outputs": outputs}}, Component)
    assert dag_outputs(dag, {"a": Values({"o": 1}, {"m": [DATA]})}) == Values({"one": 1, "of": 1}, {"m": [DATA]})


def test_collected_outputs_nest_parameters_and_flatten_artifacts() -> None:
    raw = {"outputDefinitions": {"parameters": {"p": {}}, "artifacts": {"a": {}}}, "dag": {}}
    loop_component = msgspec.convert(raw, Component)
    iterations = [Values({"p": [1, 2]}, {"a": [DATA, DATA]}), Values(), Values({"p": []}, {"a": [DATA]})]
    assert collected_outputs(loop_component, iterations) == Values({"p": [[1, 2], []]}, {"a": [DATA] * 3})
    assert collected_outputs(loop_component, []) == Values({"p": []}, {"a": []})


def test_root_inputs_fill_defaults_and_keep_an_explicit_null() -> None:
    definitions = {"a": STRING, "b": OPTIONAL, "c": DEFAULT}
    pipeline = parse_pipeline(
        {"schemaVersion": "2.1.0", "root": {"dag": {}, "inputDefinitions": {"parameters": definitions}}}
    )
    assert root_inputs(pipeline, {"a": "x"}).parameters == {"a": "x", "b": None, "c": 7}
    assert root_inputs(pipeline, {"a": "x", "c": None}).parameters["c"] is None
    with pytest.raises(InputError, match="'a' is required"):
        root_inputs(pipeline, {})


def test_an_importer_resolves_uri_and_metadata() -> None:
    raw = {
        "artifactUri": {"runtimeParameter": "uri"},
        "metadata": {"run": "{{$.pipeline_job_uuid}}", "n": "{{$.inputs.parameters['n']}}"},
    }
    found = resolve_importer(
        scope(), msgspec.convert(raw, Importer), component(uri=STRING), Values({"uri": "s3://b/k", "n": 2.0})
    )
    assert found == ("s3://b/k", {"run": "run-1", "n": 2})
    with pytest.raises(InputError, match="the artifact has no URI"):
        resolve_importer(scope(), Importer(), component(), Values())


def test_references_in_pod_settings_become_values() -> None:
    config = {
        "secretAsEnv": [
            {"secretNameParameter": {"componentInputParameter": "s"}, "keyToEnv": [{"secretKey": "k", "envVar": "E"}]},
            {"secretNameParameter": {"componentInputParameter": "null"}, "optional": True},
        ],
        "pvcMount": [
            {"taskOutputParameter": {"producerTask": "t", "outputParameterKey": "name"}, "mountPath": "/a"},
            {"constant": "claim", "mountPath": "/b"},
            {"componentInputParameter": "s", "mountPath": "/c"},
        ],
        "nodeSelector": {"nodeSelectorJson": {"componentInputParameter": "json"}, "labels": {"a": "b"}},
        "tolerations": [{"tolerationJson": {"componentInputParameter": "null"}}],
    }
    given_scope = scope(Values({"s": "secret", "json": {"disk": "ssd"}, "null": None}), t=Values({"name": "pvc"}))
    found = resolve_kubernetes(given_scope, config)
    assert [one["secretNameParameter"] for one in found["secretAsEnv"]] == ["secret"]
    assert [one["pvcNameParameter"] for one in found["pvcMount"]] == ["pvc", "claim", "secret"]
    assert found["nodeSelector"]["nodeSelectorJson"] == {"disk": "ssd"}
    assert found["tolerations"] == []
    with pytest.raises(InputError, match=r"secretAsVolume\[0\]\.secretNameParameter: has no value"):
        missing = {"secretNameParameter": {"componentInputParameter": "null"}, "mountPath": "/x"}
        resolve_kubernetes(given_scope, {"secretAsVolume": [missing]})


def test_the_executor_input_omits_empty_parts() -> None:
    assert executor_input(component(), Values(), "/t") == {
        "inputs": {},
        "outputs": {"outputFile": "/t/output_metadata.json"},
    }


def test_the_executor_input_of_a_full_task() -> None:
    raw = {
        "executorLabel": "e",
        "inputDefinitions": {"parameters": {"n": DEFAULT}},
        "outputDefinitions": {
            "parameters": {"o": STRING},
            "artifacts": {"m": {"artifactType": {"schemaTitle": "system.Model"}, "metadata": {"k": 1.0}}},
        },
    }
    inputs = Values({"n": 3, "pipelinechannel--x": 1}, {"d": [DATA]})
    model = {"name": "m", "type": {"schemaTitle": "system.Model"}, "uri": "/t/m", "metadata": {"k": 1}}
    data = {"name": "d", "type": {"schemaTitle": "system.Dataset"}, "uri": "/data", "metadata": {}}
    assert executor_input(msgspec.convert(raw, Component), inputs, "/t") == {
        "inputs": {"parameterValues": {"n": 3}, "artifacts": {"d": {"artifacts": [data]}}},
        "outputs": {
            "parameters": {"o": {"outputFile": "/t/parameters/o"}},
            "artifacts": {"m": {"artifacts": [model]}},
            "outputFile": "/t/output_metadata.json",
        },
    }
