"""What makes two executions the same, and how a difference is explained."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shallop.pipelines.cachekey import cache_key, cache_material, explain_miss, fingerprint
from shallop.pipelines.ir import Pipeline, parse_pipeline
from shallop.pipelines.plan import StartTask
from shallop.pipelines.values import Artifact, Values

DATA = Artifact("d", "/run-1/d", digest="sha256:1", id="7")


def pipeline(**container: Any) -> Pipeline:
    return parse_pipeline(
        {
            "schemaVersion": "2.1.0",
            "root": {"dag": {}},
            "components": {"c": {"executorLabel": "e", "outputDefinitions": {"parameters": {"o": {}}}}},
            "deploymentSpec": {"executors": {"e": {"container": {"image": "python:3.11", **container}}}},
        }
    )


def action(**changes: Any) -> StartTask:
    base = StartTask(
        path="root/t",
        attempt=0,
        retry_index=0,
        delay_s=0.0,
        uuid="u",
        task_name="t",
        component="c",
        executor_label="e",
        inputs=Values({"n": 3}, {"d": [DATA]}),
        kubernetes={},
        enable_cache=True,
        cache_key="",
    )
    return msgspec.structs.replace(base, **changes)


KEY = cache_key(pipeline(), action(), "lock-1")


def test_the_place_of_an_artifact_and_the_run_do_not_matter() -> None:
    moved = Artifact("d", "/run-2/d", digest="sha256:1", id="8")
    other = action(path="root/loop[3]/t", attempt=2, retry_index=1, uuid="v", inputs=Values({"n": 3.0}, {"d": [moved]}))
    assert cache_key(pipeline(env=[{"name": "A", "value": "1"}]), other, "lock-1") == KEY


@pytest.mark.parametrize(
    ("changed_pipeline", "changed_action", "environment", "reason"),
    [
        (pipeline(), action(inputs=Values({"n": 4}, {"d": [DATA]})), "lock-1", "input parameter 'n' was 3, is 4"),
        (pipeline(), action(inputs=Values({}, {"d": [DATA]})), "lock-1", "input parameter 'n' is gone"),
        (pipeline(), action(inputs=Values({"n": 3, "m": 1}, {"d": [DATA]})), "lock-1", "input parameter 'm' is new"),
        (
            pipeline(),
            action(inputs=Values({"n": 3}, {"d": [Artifact("d", "/run-1/d", digest="sha256:2", id="7")]})),
            "lock-1",
            "content of input artifact 'd' changed",
        ),
        (pipeline(args=["x"]), action(), "lock-1", "command or arguments changed"),
        (pipeline(image="python:3.12"), action(), "lock-1", 'image was "python:3.11", is "python:3.12"'),
        (
            pipeline(),
            action(),
            "lock-2",
            'environment (interpreter and locked packages) was "lock-1", is "lock-2"',
        ),
        (pipeline(), action(kubernetes={"pvcMount": [{"pvcNameParameter": "p"}]}), "lock-1", "mounted claims changed"),
    ],
)
def test_what_changes_the_outputs_changes_the_key_and_is_explained(
    changed_pipeline: Pipeline, changed_action: StartTask, environment: str, reason: str
) -> None:
    material = cache_material(changed_pipeline, changed_action, environment)
    assert fingerprint(material) != KEY
    assert explain_miss(material, cache_material(pipeline(), action(), "lock-1")) == [reason]


def test_a_key_of_the_user_replaces_all_but_the_component() -> None:
    first = cache_key(pipeline(), action(cache_key="mine"), "lock-1")
    assert first == cache_key(pipeline(image="other"), action(cache_key="mine", inputs=Values()), "lock-2")
    assert first != cache_key(pipeline(), action(cache_key="other"), "lock-1")


def test_without_a_digest_the_place_of_an_artifact_counts() -> None:
    keys = {
        cache_key(pipeline(), action(inputs=Values({}, {"d": [Artifact("d", uri)]})), "lock-1") for uri in ("/a", "/b")
    }
    assert len(keys) == 2
