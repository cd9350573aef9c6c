"""What no upstream file covers, compiled by the SDK and run on a whole platform: values, states, what a task saw."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SESSION = Path(__file__).with_name("kfp_cases_session.py")
DEADLINE_S = 150.0
LARGE = "x\u00e9\u4e2d\U0001f600" * 20_000
OBJECTS = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "case-secret", "namespace": "kubeflow"},
            "stringData": {"username": "anne \u00e9"},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "case-second", "namespace": "kubeflow"},
            "stringData": {"username": "second"},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "case-config", "namespace": "kubeflow"},
            "data": {"colour": "blue"},
        },
    ],
}

pytestmark = pytest.mark.timeout(300)


class Cases:
    """The runs of the session; each is waited for when it is asked for."""

    def __init__(self, url: str, runs: dict[str, str]) -> None:
        self._url, self._runs = f"{url}/apis/v2beta1", runs

    def submit(self, name: str, body: dict[str, Any]) -> None:
        data = json.dumps({"display_name": name, **body}).encode()
        request = urllib.request.Request(f"{self._url}/runs", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            self._runs[name] = json.load(answer)["run_id"]

    def ended(self, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with urllib.request.urlopen(f"{self._url}/runs/{self._runs[name]}/tasks", timeout=30) as answer:
                seen: dict[str, Any] = json.load(answer)
            if seen["run"]["state"] in ("SUCCEEDED", "FAILED"):
                return seen
            assert time.monotonic() < deadline, states(seen)
            time.sleep(0.1)


@pytest.fixture(scope="module")
def cases(platform: Any, client_env: Callable[[str], Path]) -> Cases:
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(OBJECTS))
    command = [str(client_env("demo")), "-W", "ignore", str(SESSION), platform.web]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return Cases(platform.web, json.loads(done.stdout.splitlines()[-1]))


def states(seen: dict[str, Any]) -> dict[str, str]:
    return {task["path"]: task["own_state"] for task in seen["tasks"]}


def tasks(seen: dict[str, Any], display_name: str) -> list[dict[str, Any]]:
    return [task for task in seen["tasks"] if task["display_name"] == display_name]


def output(seen: dict[str, Any], display_name: str) -> Any:
    (task,) = tasks(seen, display_name)
    assert task["own_state"] == "SUCCEEDED", (task["own_state"], task.get("error"), states(seen))
    return task["output_parameters"]["Output"]


def test_values_come_through_unchanged(cases: Cases) -> None:
    seen = cases.ended("values")
    assert seen["run"]["state"] == "SUCCEEDED", (seen["run"].get("error"), states(seen))
    ((first,), (second,)) = (tasks(seen, name) for name in ("first", "second"))
    quoted = 'it\'s "so" {{$}} \\n %s'
    items = [2**53 + 1, -(2**63), 5e-324, 0, "\u00e9\u4e2d\U0001f600", None, True]
    text = f"say \"{quoted}\" \\ '{quoted}' 9223372036854775807 {json.dumps(items)}"
    assert json.dumps(first["output_parameters"]["items"]) == json.dumps(items)
    assert (first["output_parameters"]["whole"], first["output_parameters"]["number"]) == (2**63 - 1, 1e308)
    assert first["output_parameters"]["text"].startswith(f"say \"{quoted}\" \\ '{quoted}' 9223372036854775807 ")
    assert second["output_parameters"] == {
        "text": first["output_parameters"]["text"],
        "whole": 2**63 - 1,
        "number": 0,
        "items": ["\u00e9\u4e2d\U0001f600", 1e308, 5e-324, True, [], 2**63 - 1, items],
        "fields": {"a 'b' \"c\"": {"deep": [None, 2**53 + 1]}},
    }, text
    assert output(seen, "sizes").startswith(f"{len(LARGE)} {len(LARGE.encode())} ")
    assert seen["run"]["runtime_config"]["parameters"]["whole"] == 2**63 - 1


def test_loops_and_branches(cases: Cases) -> None:
    seen = cases.ended("flow")
    assert seen["run"]["state"] == "SUCCEEDED", (seen["run"].get("error"), states(seen))
    assert output(seen, "of nothing") == "[]"
    assert output(seen, "of the grid") == "[[11, 21], [], [13, 23]]"
    assert output(seen, "of some") == "[2, 6, 8]"
    assert output(seen, "read-all") == "1 3 4"
    assert output(seen, "of pairs") == "[[11, 21, 31], [12, 22, 32]]"
    assert output(seen, "one of") == 32
    assert output(seen, "yes") == 8
    assert output(seen, "join") == "1x-8"
    assert not tasks(seen, "no")
    assert sorted(task["output_parameters"]["Output"] for task in tasks(seen, "read-one")) == [
        "5 {'number': 5, 'odd': True, 'parts': [5, {'half': 2.5}]}",
        "6 {'number': 6, 'odd': False, 'parts': [6, {'half': 3.0}]}",
    ]


def test_a_pipeline_in_a_pipeline_is_tried_again(cases: Cases) -> None:
    seen = cases.ended("retried")
    assert seen["run"]["state"] == "SUCCEEDED", (seen["run"].get("error"), states(seen))
    assert output(seen, "after") == 2
    (kept,) = tasks(seen, "double")
    assert len(kept["pods"]) == 1
    (again,) = tasks(seen, "flaky")
    assert again["attempt"] == 1


def test_a_task_that_ignores_failures_of_several_upstreams(cases: Cases) -> None:
    seen = cases.ended("ignoring")
    assert output(seen, "after all") == "no first, no second, 14"
    assert seen["run"]["state"] == "FAILED"


def test_an_exit_task_sees_how_the_body_ended(cases: Cases) -> None:
    seen = cases.ended("handled")
    said = output(seen, "report")
    assert said.startswith("FAILED exit-handler-1 ")
    assert "in the body" in said
    (never,) = tasks(seen, "never")
    assert never["own_state"] == "OMITTED"
    assert seen["run"]["state"] == "FAILED"


def test_deadlines_of_a_run_and_of_a_task(cases: Cases) -> None:
    late, timed = cases.ended("late"), cases.ended("timed")
    assert late["run"]["state"] == timed["run"]["state"] == "FAILED"
    assert "active deadline" in late["run"]["error"]["message"]
    (sleep,) = tasks(timed, "sleep")
    assert sleep["own_state"] == "FAILED"
    assert "DeadlineExceeded" in sleep["error"]["message"]


def test_artifacts_placeholders_and_importers(cases: Cases) -> None:
    seen = cases.ended("things")
    assert seen["run"]["state"] == "SUCCEEDED", (seen["run"].get("error"), states(seen))
    (made,) = [task for task in seen["tasks"] if task["name"] == "odd-file"]
    ((without,), (with_option,)) = (tasks(seen, name) for name in ("without", "with"))
    said = without["output_parameters"]["said"].split("|")
    assert said[0].startswith("n=3;/")
    assert said[0].endswith("/data!")
    assert said[1:5] == ["5", '[5, {"half": 2.5}]', "none", "of"]
    assert said[5].startswith('$HOME {"inputs": ')
    assert said[5].endswith("} 'a' \"b\"")
    assert said[6:] == [without["name"], ""]
    assert with_option["output_parameters"]["said"].split("|")[3:5] == ["--opt", seen["run"]["run_id"]]
    assert made["own_state"] == "SUCCEEDED"
    assert output(seen, "embedded") == "embedded \u00e9"
    model = json.dumps(["s3://bucket/model", {"of": "a s3://bucket/model", "ok": True, "rows": 3}])
    assert output(seen, "describe") == output(seen, "again") == model
    first, again, local, _ = (task for task in seen["tasks"] if task["kind"] == "importer")
    ids = [task["outputs"]["artifact"]["artifact_ids"] for task in (first, again, local)]
    assert len({json.dumps(id_) for id_ in ids}) == 3
    assert output(seen, "in-workspace") == "True embedded \u00e9 True"
    assert output(seen, "from the web").startswith('True {"multi_user":false')


def test_settings_of_kubernetes(cases: Cases) -> None:
    seen = cases.ended("kubernetes")
    assert seen["run"]["state"] == "SUCCEEDED", (seen["run"].get("error"), states(seen))
    saw = output(seen, "look")
    (look,) = tasks(seen, "look")
    assert saw == {
        "USER_NAME": "anne \u00e9",
        "COLOUR": "blue",
        "POD_LABEL": "labelled",
        "POD_NAME": look["pods"][-1]["name"],
        "PLAIN": "'x' \"y\" é $HOME",
        "NONE": "",
        "/secret/username": "anne \u00e9",
        "/config/colour": "blue",
        "/claim/file": "kept",
        "/none/username": "absent",
    }
    given = output(seen, "launches")
    assert given["own"] == ["green", True]
    assert given["resources"] == {"requests": {"memory": "1Gi"}, "limits": {"cpu": "2"}}
    assert given["selector"] == {"disk": "fast"}
    assert given["tolerations"] == [{"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]
    assert given["env"] == [{"name": "COLOUR", "value": "green"}]
    assert [mount["mountPath"] for mount in given["mounts"]] == ["/passed"]
    assert given["volumes"] == 1


def pods_of(platform: Any, run_id: str) -> list[dict[str, Any]]:
    found = platform.kubectl("get", "pods", "-n", "kubeflow", "-l", f"pipeline/runid={run_id}", "-o", "json")
    items: list[dict[str, Any]] = json.loads(found)["items"]
    return items


def test_names_and_settings_that_are_parameters(cases: Cases) -> None:
    seen = cases.ended("named")
    assert seen["run"]["state"] == "SUCCEEDED", (seen["run"].get("error"), states(seen))
    looped = [task["output_parameters"]["Output"] for task in tasks(seen, "looped")]
    assert sorted(looped, key=lambda one: str(one["USER_NAME"])) == [
        {"USER_NAME": name, "COLOUR": "blue", "/secret/username": name, "/config/colour": "blue"}
        for name in ("anne \u00e9", "second")
    ]
    assert output(seen, "placed") == output(seen, "placed too") == "tmpfs"
    assert output(seen, "sized") == 42


def test_settings_reach_the_pod(cases: Cases, platform: Any) -> None:
    seen = cases.ended("named")
    pods = pods_of(platform, seen["run"]["run_id"])
    placed = {pod["metadata"]["annotations"]["pipelines.shallop.dev/task-path"]: pod for pod in pods}
    spec, other = (placed[f"root/{name}"]["spec"] for name in ("memory", "memory-2"))
    assert {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoSchedule"} in spec["tolerations"]
    assert {"key": "b", "operator": "Exists", "tolerationSeconds": 9} in other["tolerations"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    affinity = spec["affinity"]["nodeAffinity"]
    (preferred,) = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["weight"] == 5
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "Exists"}]}
    sized = placed["root/double"]["spec"]["containers"][0]
    assert sized["resources"] == {name: {"cpu": "150m", "memory": "64Mi"} for name in ("requests", "limits")}
    assert sized["image"] == "python:3.11"
    assert spec["imagePullSecrets"] == [{"name": "case-none"}]
    assert spec["containers"][0]["securityContext"] == {"runAsUser": 12345, "runAsGroup": 12346}
    # What has no effect here is said.
    name = placed["root/memory"]["metadata"]["name"]
    events = platform.kubectl("get", "events", "-n", "kubeflow", "--field-selector", f"involvedObject.name={name}")
    assert "FieldIgnored" in events
    assert "runAsUser has no effect" in events


def test_pods_go_when_their_time_is_over_and_results_stay(cases: Cases, platform: Any) -> None:
    seen = cases.ended("brief")
    deadline = time.monotonic() + DEADLINE_S
    while pods_of(platform, seen["run"]["run_id"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert output(cases.ended("brief"), "double") == 42


def test_notebooks_are_components(cases: Cases) -> None:
    seen = cases.ended("notebook")
    assert seen["run"]["state"] == "FAILED", (seen["run"].get("error"), states(seen))
    assert output(seen, "four") == "0 1 4 9"
    (thirteen,) = tasks(seen, "thirteen")
    assert thirteen["own_state"] == "FAILED"
    assert "AssertionError: thirteen" in thirteen["error"]["message"], thirteen["error"]


def test_what_is_no_number_fails_its_task(cases: Cases) -> None:
    seen = cases.ended("nan")
    assert seen["run"]["state"] == "FAILED"
    (task,) = tasks(seen, "no-number")
    assert "Output" in task["error"]["message"]
    assert "is nan" in task["error"]["message"]


# ---- what the SDK does not write: by hand

IMPORT = {"importer": {"artifactUri": {"constant": "/data/{{$.inputs.parameters['n']}}"}, "reimport": True}}
N: dict[str, Any] = {"parameters": {"n": {"parameterType": "NUMBER_INTEGER"}}}
ARTIFACT = {"artifacts": {"artifact": {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}}}
IMPORTER = {"executorLabel": "import", "inputDefinitions": N, "outputDefinitions": ARTIFACT}


def document(name: str, tasks: dict[str, Any], components: dict[str, Any], **root: Any) -> dict[str, Any]:
    script = 'mkdir -p "$(dirname "$0")"; cat /shared/note > "$0"'
    say = {"image": "alpine", "command": ["sh", "-c", script, "{{$.outputs.parameters['said'].output_file}}"]}
    return {
        "pipelineInfo": {"name": name},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": tasks}, **root},
        "components": components,
        "deploymentSpec": {"executors": {"import": IMPORT, "say": {"container": say}}},
    }


def step(component: str, *needs: str, **inputs: Any) -> dict[str, Any]:
    return {
        "componentRef": {"name": component},
        "dependentTasks": list(needs),
        "inputs": {"parameters": {name: {"runtimeValue": {"constant": value}} for name, value in inputs.items()}},
    }


def test_a_loop_of_500_and_a_graph_of_2000_tasks(cases: Cases) -> None:
    each = step("body") | {
        "parameterIterator": {"items": {"raw": json.dumps(list(range(500)))}, "itemInput": "n"},
        "iteratorPolicy": {"parallelismLimit": 20},
    }
    inner = step("one") | {"inputs": {"parameters": {"n": {"componentInputParameter": "n"}}}}
    collected = {"artifactSelectors": [{"producerSubtask": "inner", "outputArtifactKey": "artifact"}]}
    dag = {"tasks": {"inner": inner}, "outputs": {"artifacts": {"artifact": collected}}}
    body = {"inputDefinitions": N, "outputDefinitions": ARTIFACT, "dag": dag}
    graph = {f"t{n}": step("one", *([f"t{n - 9}", f"t{n // 2}"] if n > 9 else []), n=n) for n in range(2000)}
    spec = document("large", graph | {"each": each}, {"one": IMPORTER, "body": body})
    cases.submit("large", {"pipeline_spec": spec})
    seen = cases.ended("large")
    assert seen["run"]["state"] == "SUCCEEDED", seen["run"].get("error")
    importers = [task for task in seen["tasks"] if task["kind"] == "importer"]
    assert len(importers) == 2500
    assert {task["own_state"] for task in importers} == {"SUCCEEDED"}
    (loop,) = [task for task in seen["tasks"] if task["kind"] == "loop"]
    inside = {task["task_id"]: task for task in importers if task["name"] == "inner"}
    made = [one["outputs"]["artifact"]["artifact_ids"][0] for one in inside.values()]
    assert sorted(loop["outputs"]["artifact"]["artifact_ids"]) == sorted(made)


@pytest.mark.parametrize(("n", "expected"), [(1, "SUCCEEDED"), (6, "SUCCEEDED"), (3, "SKIPPED")])
def test_nested_negation_and_either(cases: Cases, n: int, expected: str) -> None:
    value = "inputs.parameter_values['n']"
    condition = f"!(!({value} == 1) && !(!(!({value} > 5)) || {value} < 0))"
    policy = {"triggerPolicy": {"condition": condition}}
    cases.submit("either", {"pipeline_spec": document("either", {"one": step("one", n=n) | policy}, {"one": IMPORTER})})
    seen = cases.ended("either")
    (one,) = [task for task in seen["tasks"] if task["name"] == "one"]
    assert one["own_state"] == expected


def test_one_exit_task_over_several_dependencies_runs_once(cases: Cases) -> None:
    script = 'mkdir -p "$(dirname "$1")"; printf "%s" "$0" > "$1"'
    put = ["sh", "-c", script, "{{$.inputs.parameters['status']}}", "{{$.outputs.parameters['said'].output_file}}"]
    status = {"parameters": {"status": {"parameterType": "TASK_FINAL_STATUS", "isOptional": True}}}
    said = {"parameters": {"said": {"parameterType": "STRING"}}}
    components = {
        "fails": {"executorLabel": "fails"},
        "goes": {"executorLabel": "goes"},
        "told": {"executorLabel": "told", "inputDefinitions": status, "outputDefinitions": said},
    }
    end = step("told", "fails", "goes") | {
        "inputs": {"parameters": {"status": {"taskFinalStatus": {"producerTask": "fails"}}}},
        "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
    }
    tasks_ = {"fails": step("fails"), "goes": step("goes"), "end": end, "after": step("goes", "end")}
    spec = document("exits", tasks_, components)
    containers = {"fails": ["sh", "-c", "exit 3"], "goes": ["true"], "told": put}
    spec["deploymentSpec"]["executors"] |= {
        name: {"container": {"image": "alpine", "command": command}} for name, command in containers.items()
    }
    cases.submit("exits", {"pipeline_spec": spec})
    seen = cases.ended("exits")
    found = {task["name"]: task for task in seen["tasks"]}
    assert {name: task["own_state"] for name, task in found.items()} == {
        "root": "FAILED",
        "fails": "FAILED",
        "goes": "SUCCEEDED",
        "end": "SUCCEEDED",
        "after": "SUCCEEDED",
    }
    assert len(found["end"]["pods"]) == 1
    told = json.loads(found["end"]["output_parameters"]["said"])
    assert (told["state"], told["pipelineTaskName"]) == ("FAILED", "fails")


def test_an_init_container_runs_before_the_task(cases: Cases) -> None:
    said = {"parameters": {"said": {"parameterType": "STRING"}}}
    say = {"executorLabel": "say", "outputDefinitions": said}
    mount = {"volumeName": "shared", "mountPath": "/shared"}
    first = {
        "name": "first",
        "image": "alpine",
        "command": ["sh", "-c"],
        "args": ["printf 'of the first: %s' \"$NOTE\" > /shared/note"],
        "env": [{"name": "NOTE", "value": "it's \u00e9"}],
        "volumeMounts": [mount],
    }
    config = {"emptyDirMounts": [mount], "initContainers": [first]}
    platforms = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"say": config}}}}}
    spec = {"pipeline_spec": document("init", {"say": step("say")}, {"say": say}), "platform_spec": platforms}
    cases.submit("init", {"pipeline_spec": spec})
    seen = cases.ended("init")
    assert seen["run"]["state"] == "SUCCEEDED", seen["run"].get("error")
    (task,) = [task for task in seen["tasks"] if task["name"] == "say"]
    assert task["output_parameters"] == {"said": "of the first: it's \u00e9"}
