"""Items of loops within texts come to where they are used, though the compiler did not write how."""

from __future__ import annotations

from typing import Any

from shallop.pipelines.ir import Pipeline, parse_pipeline
from shallop.pipelines.validation import check_pipeline

OUTER, INNER = "pipelinechannel--loop-item-param-1", "pipelinechannel--loop-item-param-3"
FIELD = f"{OUTER}-subvar-a"
Json = dict[str, Any]


def given(**sources: str) -> Json:
    return {"parameters": {name: {"componentInputParameter": source} for name, source in sources.items()}}


def group(task: str, component: str, inputs: Json, declared: list[str], item: str = "") -> Json:
    """A component with one task: of a loop over a list, of another group, or one that prints."""
    iterator = {"parameterIterator": {"itemInput": item, "items": {"raw": "[1, 2]"}}} if item else {}
    return {
        "inputDefinitions": {"parameters": {name: {"parameterType": "STRING"} for name in declared}},
        "dag": {"tasks": {task: {"componentRef": {"name": component}, "inputs": inputs, **iterator}}},
    }


def nested() -> Json:
    """What kfp 2.17 makes of ``f"{outer}{outer.a}-{inner}"`` in two loops over lists and a condition."""
    text = {"text": {"runtimeValue": {"constant": f"{{{{$.inputs.parameters['{INNER}']}}}}"}}}
    used = given(**{OUTER: OUTER, FIELD: FIELD, INNER: INNER})
    return {
        "schemaVersion": "2.1.0",
        "pipelineInfo": {"name": "nested"},
        "root": group(
            "for-loop-2",
            "outer",
            given(**{INNER: "loop-item-param-3", FIELD: "loop-item-param-1-subvar-a"}),
            [],
            OUTER,
        ),
        "components": {
            "outer": group("for-loop-4", "inner", {}, [OUTER, FIELD, INNER], INNER),
            "inner": group("condition-5", "condition", {}, [INNER]),
            "condition": group("show", "show", {"parameters": used["parameters"] | text}, []),
            "show": {
                "executorLabel": "show",
                "inputDefinitions": {"parameters": {"text": {"parameterType": "STRING"}}},
            },
        },
        "deploymentSpec": {"executors": {"show": {"container": {"image": "alpine"}}}},
    }


def sources(pipeline: Pipeline, component: str, task: str) -> dict[str, tuple[str | None, str]]:
    dag = pipeline.root.dag if component == "root" else pipeline.components[component].dag
    assert dag is not None
    parameters = dag.tasks[task].inputs.parameters
    return {
        name: (source.component_input_parameter, source.parameter_expression_selector)
        for name, source in parameters.items()
        if source.runtime_value is None
    }


def test_items_are_passed_from_their_loops() -> None:
    pipeline = parse_pipeline(nested())
    assert check_pipeline(pipeline, lambda image, argv: None) == []
    assert sources(pipeline, "root", "for-loop-2") == {}
    assert sources(pipeline, "outer", "for-loop-4") == {OUTER: (OUTER, "")}
    assert sources(pipeline, "inner", "condition-5") == {OUTER: (OUTER, ""), INNER: (INNER, "")}
    assert sources(pipeline, "condition", "show") == {
        OUTER: (OUTER, ""),
        FIELD: (OUTER, 'parseJson(string_value)["a"]'),
        INNER: (INNER, ""),
    }
    assert set(pipeline.components["outer"].input_definitions.parameters) == {OUTER}
    assert set(pipeline.components["condition"].input_definitions.parameters) == {OUTER, INNER}
    assert pipeline.raw == nested()


def test_an_item_of_no_loop_around_is_refused() -> None:
    document = nested()
    other = "pipelinechannel--x"
    document["components"]["condition"]["dag"]["tasks"]["show"]["inputs"]["parameters"][other] = {
        "componentInputParameter": other
    }
    (error,) = check_pipeline(parse_pipeline(document), lambda image, argv: None)
    assert error.field.endswith(f"tasks.show.inputs.parameters.{other}.componentInputParameter")
