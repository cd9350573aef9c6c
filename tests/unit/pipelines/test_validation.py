"""Wrong pipelines and parameters are refused at the door, each with the field and what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from shallop.errors import BadRequestError, FieldError
from shallop.pipelines.ir import Pipeline, parse_pipeline
from shallop.pipelines.validation import check_parameters, check_pipeline, refuse, warnings_of

Json = dict[str, Any]

SPEC: Json = {
    "schemaVersion": "2.1.0",
    "pipelineInfo": {"name": "good-name"},
    "root": {
        "inputDefinitions": {"parameters": {"p": {"parameterType": "STRING"}}},
        "dag": {
            "tasks": {
                "make": {"componentRef": {"name": "make"}},
                "loop": {
                    "componentRef": {"name": "body"},
                    "dependentTasks": ["make"],
                    "inputs": {
                        "parameters": {
                            "all": {"taskOutputParameter": {"producerTask": "make", "outputParameterKey": "o"}}
                        }
                    },
                    "parameterIterator": {"items": {"inputParameter": "all"}, "itemInput": "item"},
                },
            },
            "outputs": {
                "parameters": {"o": {"valueFromParameter": {"producerSubtask": "make", "outputParameterKey": "o"}}}
            },
        },
    },
    "components": {
        "make": {"executorLabel": "e", "outputDefinitions": {"parameters": {"o": {"parameterType": "LIST"}}}},
        "body": {
            "inputDefinitions": {"parameters": {"all": {"parameterType": "LIST"}, "item": {"parameterType": "STRING"}}},
            "dag": {
                "tasks": {
                    "use": {
                        "componentRef": {"name": "use"},
                        "inputs": {"parameters": {"x": {"componentInputParameter": "item"}}},
                        "triggerPolicy": {"condition": "inputs.parameter_values['x'] == 'a'"},
                    }
                }
            },
        },
        "use": {"executorLabel": "e", "inputDefinitions": {"parameters": {"x": {"parameterType": "STRING"}}}},
    },
    "deploymentSpec": {"executors": {"e": {"container": {"image": "python:3.11", "args": ["a"]}}}},
}


def changed(change: Callable[[Json], Any], platform: Json | None = None) -> Pipeline:
    spec = copy.deepcopy(SPEC)
    change(spec)
    return parse_pipeline(spec, platform)


def texts(errors: list[FieldError]) -> list[str]:
    return [f"{error.field}: {error.message}" for error in errors]


def check(change: Callable[[Json], Any]) -> list[str]:
    return texts(check_pipeline(changed(change), lambda image, argv: None))


def put(path: str, value: Any) -> Callable[[Json], Any]:
    def change(spec: Json) -> None:
        *keys, last = path.split("/")
        for key in keys:
            spec = spec.setdefault(key, {})
        spec[last] = value

    return change


def test_a_sound_pipeline_has_no_errors() -> None:
    assert check(lambda spec: None) == []


@pytest.mark.parametrize(
    ("name", "constant"), [("pipelinechannel--p", "a"), ("y", "{{$.inputs.parameters['y']}} and \"b\"")]
)
def test_an_input_that_only_constants_name_is_none_of_the_component(name: str, constant: str) -> None:
    def change(spec: Json) -> None:
        inputs = spec["components"]["body"]["dag"]["tasks"]["use"]["inputs"]["parameters"]
        inputs |= {name: inputs["x"], "x": {"runtimeValue": {"constant": constant}}}

    assert check(change) == []


MAKE, USE, LOOP = "root/dag/tasks/make", "components/body/dag/tasks/use", "root/dag/tasks/loop"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("pipelineInfo/name", "Bad_Name", 'pipelineInfo.name: Invalid value: "Bad_Name": use at most 128 lower-case'),
        ("pipelineInfo/name", "a" * 129, "pipelineInfo.name: Invalid value"),
        (f"{MAKE}/componentRef/name", "nope", 'root.dag.tasks.make.componentRef.name: Invalid value: "nope": no such'),
        (f"{MAKE}/dependentTasks", ["x"], 'root.dag.tasks.make.dependentTasks[0]: Invalid value: "x": no such task'),
        (f"{MAKE}/dependentTasks", ["make"], "root.dag.tasks: Forbidden: tasks wait for each other: make -> make"),
        (f"{MAKE}/dependentTasks", ["loop"], "root.dag.tasks: Forbidden: tasks wait for each other: "),
        (f"{USE}/componentRef/name", "body", "components.body.dag.tasks.use.inputs.parameters.all: Required value"),
        (
            f"{USE}/inputs/parameters/x",
            {},
            "components.body.dag.tasks.use.inputs.parameters.x: Required value: exactly",
        ),
        (
            f"{USE}/inputs/parameters/y",
            {"runtimeValue": {"constant": 1}},
            "components.body.dag.tasks.use.inputs.parameters.y: Invalid value: \"y\": component 'use' declares no such",
        ),
        (
            f"{USE}/inputs/artifacts",
            {"y": {"componentInputArtifact": "a"}},
            "components.body.dag.tasks.use.inputs.artifacts.y: Invalid value: \"y\": component 'use' declares no such",
        ),
        (f"{USE}/inputs/parameters", {}, "components.body.dag.tasks.use.inputs.parameters.x: Required value: the comp"),
        (
            f"{USE}/inputs/parameters/x/componentInputParameter",
            "nope",
            'components.body.dag.tasks.use.inputs.parameters.x.componentInputParameter: Invalid value: "nope"',
        ),
        (
            f"{USE}/inputs/parameters/x/parameterExpressionSelector",
            "string_value",
            "components.body.dag.tasks.use.inputs.parameters.x.parameterExpressionSelector: Forbidden: Selector",
        ),
        (
            f"{USE}/triggerPolicy/condition",
            "size(x) > 1",
            "components.body.dag.tasks.use.triggerPolicy.condition: Forbidden: Condition size(x) > 1: not supported",
        ),
        (f"{USE}/triggerPolicy/strategy", "SOON", "components.body.dag.tasks.use.triggerPolicy.strategy: Unsupported"),
        (
            f"{USE}/retryPolicy",
            {"backoffDuration": "1m"},
            "components.body.dag.tasks.use.retryPolicy.backoffDuration: ",
        ),
        (f"{USE}/retryPolicy", {"maxRetryCount": -1}, "components.body.dag.tasks.use.retryPolicy.maxRetryCount: "),
        (f"{LOOP}/iteratorPolicy", {"parallelismLimit": -1}, "root.dag.tasks.loop.iteratorPolicy.parallelismLimit: "),
        (f"{LOOP}/parameterIterator/items", {"raw": "{}"}, "root.dag.tasks.loop.parameterIterator.items.raw: Invalid"),
        (f"{LOOP}/parameterIterator/items", {}, "root.dag.tasks.loop.parameterIterator.items: Required value"),
        (
            f"{LOOP}/parameterIterator/items",
            {"inputParameter": "no"},
            "root.dag.tasks.loop.parameterIterator.items.inputParameter: ",
        ),
        (
            f"{LOOP}/inputs/parameters/all/taskOutputParameter/outputParameterKey",
            "nope",
            "root.dag.tasks.loop.inputs.parameters.all.taskOutputParameter: Invalid value: \"nope\": task 'make'",
        ),
        (
            "root/dag/outputs/parameters/o/valueFromParameter/producerSubtask",
            "nope",
            'root.dag.outputs.parameters.o.producerTask: Invalid value: "nope": no such task',
        ),
        ("root/dag/tasks/..", {"componentRef": {"name": "make"}}, 'root.dag.tasks...: Invalid value: "..": a name'),
        ("root/dag/outputs/parameters/o", {}, "root.dag.outputs.parameters.o: Required value"),
        ("components/make/executorLabel", "nope", 'components.make.executorLabel: Invalid value: "nope": no such'),
        ("components/make", {}, "components.make: Required value: a 'dag' or an 'executorLabel'"),
        (
            "components/use/inputDefinitions/parameters/x/parameterType",
            "DATE",
            'components.use.inputDefinitions.parameters.x.parameterType: Unsupported value: "DATE"',
        ),
        ("root", {"executorLabel": "e"}, "root.dag: Required value"),
        ("deploymentSpec/executors/e", {"resolver": {}}, "deploymentSpec.executors.e.resolver: Forbidden: resolvers"),
        ("deploymentSpec/executors/e", {"customJob": {}}, "deploymentSpec.executors.e.customJob: Forbidden: Google"),
        ("deploymentSpec/executors/e", {}, "deploymentSpec.executors.e: Required value"),
        (
            "deploymentSpec/executors/e/container/lifecycle",
            {"preCacheCheck": {}},
            "deploymentSpec.executors.e.container.lifecycle: Forbidden",
        ),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, expected: str) -> None:
    assert any(text.startswith(expected) for text in check(put(path, value)))


def test_components_that_contain_each_other_are_refused() -> None:
    source = {"parameters": {name: {"componentInputParameter": "item"} for name in ("all", "item")}}
    task = {"componentRef": {"name": "body"}, "inputs": source}
    (text,) = check(put(USE, task))
    assert text == "components: Forbidden: components contain each other without end: body -> body"


def test_an_image_is_asked_for_once_with_its_command_line() -> None:
    asked = []

    def can_resolve(image: str, argv: Any) -> str | None:
        asked.append((image, argv))
        return "map it"

    pipeline = changed(lambda spec: None)
    assert texts(check_pipeline(pipeline, can_resolve)) == [
        'deploymentSpec.executors.e.container.image: Invalid value: "python:3.11": map it'
    ]
    assert asked == [("python:3.11", ["a"])]
    built_in = changed(put("deploymentSpec/executors/e/container/image", "argostub/createpvc"))
    assert check_pipeline(built_in, can_resolve) == []


def test_a_producer_named_only_by_pod_settings_must_exist() -> None:
    mount = {"mountPath": "/d", "taskOutputParameter": {"producerTask": "nope", "outputParameterKey": "name"}}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"e": {"pvcMount": [mount]}}}}}}
    errors = check_pipeline(changed(lambda spec: None, platform), lambda image, argv: None)
    assert errors[0].field == "platforms.kubernetes.deploymentSpec.executors.e"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"secretAsEnv": True}, "secretAsEnv: Expected `array`, got `bool`"),
        ({"secretAsVolume": [{"secretName": "s"}]}, "secretAsVolume.0: Object missing required field `mountPath`"),
        ({"tolerations": [{"key": 1}]}, "tolerations.0.key: Expected `str`, got `int`"),
        ({"activeDeadlineSeconds": "soon"}, "activeDeadlineSeconds: Expected `int`, got `str`"),
        ({"podMetadata": {"labels": {"a": {}}}}, "podMetadata.labels.a: Expected `str`, got `object`"),
        ({"securityContext": {"runAsUser": "root"}}, "securityContext.runAsUser: Expected `int"),
    ],
)
def test_settings_of_a_wrong_shape_are_named(config: Json, expected: str) -> None:
    platforms = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"e": config}}}}}
    pipeline = parse_pipeline(copy.deepcopy(SPEC), platforms)
    (error,) = check_pipeline(pipeline, lambda image, argv: None)
    assert f"{error.field}: {error.message}".startswith(f"platforms.kubernetes.deploymentSpec.executors.e.{expected}")


def test_a_platform_document_of_a_wrong_shape_is_named() -> None:
    for platform, field in (
        ("x", "platform_spec"),
        ({"platforms": []}, "platforms"),
        ({"platforms": {"kubernetes": 1}}, "platforms.kubernetes"),
        ({"platforms": {"kubernetes": {"deploymentSpec": []}}}, "platforms.kubernetes.deploymentSpec"),
    ):
        with pytest.raises(BadRequestError, match=f"{field}: Expected an object"):
            parse_pipeline({"pipeline_spec": copy.deepcopy(SPEC), "platform_spec": platform})


def test_unknown_pod_settings_are_said() -> None:
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"e": {"gpuBurst": 1}}}}}}
    assert warnings_of(changed(lambda spec: None, platform)) == [
        "platforms.kubernetes.deploymentSpec.executors.e.gpuBurst: not known, ignored."
    ]


def test_settings_of_another_platform_are_said_to_have_no_effect() -> None:
    assert warnings_of(changed(lambda spec: None, {"platforms": {"google_cloud": {}}})) == [
        "platforms.google_cloud: only the settings of platform 'kubernetes' are used, ignored.",
    ]


# ---- parameters


def with_parameters(**definitions: Json) -> Pipeline:
    return changed(put("root/inputDefinitions/parameters", definitions))


INTEGER, LITERAL = {"parameterType": "NUMBER_INTEGER"}, {"parameterType": "STRING", "literals": ["a", "b"]}


@pytest.mark.parametrize(
    ("definition", "value"),
    [
        (INTEGER, 5),
        (INTEGER, 5.0),
        ({"parameterType": "NUMBER_DOUBLE"}, 1),
        ({"parameterType": "STRING"}, ""),
        ({"parameterType": "BOOLEAN"}, False),
        ({"parameterType": "LIST"}, []),
        ({"parameterType": "STRUCT"}, {}),
        ({**INTEGER, "isOptional": True}, None),
        (LITERAL, "b"),
        ({"parameterType": "NUMBER_INTEGER", "literals": [1.0, 2.0]}, 2),
    ],
)
def test_parameters_that_fit(definition: Json, value: Any) -> None:
    assert check_parameters(with_parameters(x=definition), {"x": value}) == []


@pytest.mark.parametrize(
    ("definition", "given", "expected"),
    [
        (INTEGER, {"x": "5"}, 'x: Invalid value: "5": NUMBER_INTEGER takes an integer'),
        (INTEGER, {"x": 1.5}, "x: Invalid value: 1.5: NUMBER_INTEGER takes an integer"),
        (INTEGER, {"x": True}, "x: Invalid value: true: NUMBER_INTEGER takes an integer"),
        ({"parameterType": "STRING"}, {"x": 5}, "x: Invalid value: 5: STRING takes a text"),
        ({"parameterType": "BOOLEAN"}, {"x": "true"}, 'x: Invalid value: "true": BOOLEAN takes true or false'),
        ({"parameterType": "LIST"}, {"x": "[]"}, 'x: Invalid value: "[]": LIST takes a list'),
        (INTEGER, {"x": None}, "x: Invalid value: null: null is only allowed for optional parameters"),
        (INTEGER, {}, "x: Required value: an integer, without a default"),
        (LITERAL, {"x": "c"}, 'x: Unsupported value: "c": supported values: "a", "b"'),
        (INTEGER, {"x": 1, "y": 2}, "y: Invalid value: 2: pipeline 'good-name' has no such parameter; it has: x"),
    ],
)
def test_parameters_that_do_not_fit(definition: Json, given: Json, expected: str) -> None:
    (text,) = texts(check_parameters(with_parameters(x=definition), given))
    assert text.startswith(f"runtime_config.parameters.{expected}")


def test_defaults_need_no_value_and_artifacts_of_the_root_cannot_be_given() -> None:
    assert check_parameters(with_parameters(x={**INTEGER, "defaultValue": 0}), {}) == []
    pipeline = changed(put("root/inputDefinitions", {"artifacts": {"a": {}, "b": {"isOptional": True}}}))
    (text,) = texts(check_parameters(pipeline, {}))
    assert text.startswith("root.inputDefinitions.artifacts.a: Required value: the pipeline needs an artifact")


def test_all_errors_come_in_one_message() -> None:
    refuse([], "Pipeline 'p'")
    errors = [FieldError.required(f"f{n}") for n in range(25)]
    with pytest.raises(BadRequestError) as caught:
        refuse(errors, "Pipeline 'p'")
    assert caught.value.message.startswith("Pipeline 'p': f0: Required value; f1: Required value;")
    assert caught.value.message.endswith("; and 5 more")
