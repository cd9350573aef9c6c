"""The Pod of a task: names, launcher arguments, settings of kfp-kubernetes."""

from __future__ import annotations

import json
import re
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.pipelines.ir import Pipeline, parse_pipeline
from shallop.pipelines.plan import StartTask
from shallop.pipelines.render import claim_name, pod_name, render_claim, render_pod, task_folder
from shallop.pipelines.values import Artifact, RunInfo, Values

Json = dict[str, Any]
RUN = RunInfo("run-1", "my run", "good-name-abcde", "/root/", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")


def pipeline(container: Json | None = None, component: Json | None = None) -> Pipeline:
    return parse_pipeline(
        {
            "schemaVersion": "2.1.0",
            "pipelineInfo": {"name": "good-name"},
            "root": {"dag": {}},
            "components": {"c": {"executorLabel": "e", **(component or {})}},
            "deploymentSpec": {"executors": {"e": {"container": {"image": "python:3.11", **(container or {})}}}},
        }
    )


def action(path: str = "root/train", inputs: Values | None = None, attempt: int = 0, **kubernetes: Any) -> StartTask:
    return StartTask(
        path=path,
        attempt=attempt,
        retry_index=attempt,
        delay_s=0.0,
        uuid="u-1",
        task_name="train",
        component="c",
        executor_label="e",
        inputs=inputs or Values(),
        kubernetes=kubernetes,
        enable_cache=False,
        cache_key="",
    )


def pod(built: Pipeline | None = None, started: StartTask | None = None) -> Json:
    """Render a Pod and check it against the schema of Kubernetes."""
    rendered = render_pod(built or pipeline(), RUN, started or action(), namespace="team")
    kubernetes_validate.validate(rendered, "1.34", strict=True)
    return rendered


def main(rendered: Json) -> Json:
    container: Json = rendered["spec"]["containers"][0]
    return container


def task_of(rendered: Json) -> Json:
    args = main(rendered)["args"]
    task: Json = json.loads(args[args.index("--task") + 1])
    return task


def test_the_plainest_pod() -> None:
    rendered = pod(pipeline({"command": ["echo"], "args": ["hi", "{{$}}"]}))
    assert rendered["metadata"] == {
        "name": pod_name(RUN, action()),
        "namespace": "team",
        "labels": {"pipelines.kubeflow.org/v2_component": "true", "pipeline/runid": "run-1"},
        "annotations": {"pipelines.shallop.dev/task-path": "root/train"},
    }
    assert rendered["spec"].keys() == {"restartPolicy", "containers"}
    container = main(rendered)
    assert container["command"] == ["python3", "-m", "shallop_pod.launcher"]
    assert container["args"][2:] == ["--", "echo", "hi", "{{$}}"]
    assert container["image"] == "python:3.11"
    assert [one["name"] for one in container["env"]] == ["KFP_POD_NAME", "KFP_POD_UID", "KFP_RETRY_INDEX"]
    assert task_of(rendered) == {
        "name": "train",
        "dir": "/root/good-name/run-1/train/u-1",
        "executorInput": {
            "inputs": {},
            "outputs": {"outputFile": "/root/good-name/run-1/train/u-1/output_metadata.json"},
        },
        "outputParameters": {},
        "retryIndex": 0,
    }


def test_every_attempt_has_its_own_name_and_folder() -> None:
    attempts = [action(attempt=n) for n in range(3)]
    assert len({pod_name(RUN, one) for one in attempts}) == 3
    assert [task_folder(RUN, one).rpartition("/")[2] for one in attempts] == ["u-1", "u-1-1", "u-1-2"]


@given(st.text(min_size=1), st.text(min_size=1), st.integers(0, 10_000))
def test_pod_names_are_dns_labels(resource_name: str, path: str, attempt: int) -> None:
    run = RunInfo("r", "n", resource_name, "/", "", "")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", pod_name(run, action(path, attempt=attempt)))


def test_placeholders_reach_command_environment_image_and_resources() -> None:
    built = pipeline(
        {
            "image": "python:{{$.inputs.parameters['v']}}",
            "command": ["run", "{{$.inputs.parameters['n']}}", "{{$.outputs.artifacts['m'].path}}"],
            "args": ['{"IfPresent": {"InputName": "d", "Then": ["--d", "{{$.inputs.artifacts[\'d\'].uri}}"]}}'],
            "env": [{"name": "N", "value": "{{$.inputs.parameters['n']}}"}],
            "resources": {
                "resourceCpuRequest": "{{$.inputs.parameters['pipelinechannel--cpu']}}",
                "resourceMemoryLimit": "2Gi",
                "memoryRequest": 0.5,
                "cpuLimit": 2.0,
                "accelerator": {"resourceType": "amd.com/gpu", "resourceCount": "1"},
            },
        },
        {
            "inputDefinitions": {
                "parameters": {"n": {"parameterType": "NUMBER_INTEGER", "isOptional": True, "defaultValue": 7.0}},
                "artifacts": {"d": {"isOptional": True}},
            },
            "outputDefinitions": {"artifacts": {"m": {}}, "parameters": {"o": {"parameterType": "LIST"}}},
        },
    )
    inputs = Values({"v": "3.12", "pipelinechannel--cpu": "500m"}, {"d": [Artifact("d", "/data")]})
    rendered = pod(built, action(inputs=inputs))
    container = main(rendered)
    assert container["image"] == "python:3.12"
    assert container["args"][3:] == ["run", "7", "/root/good-name/run-1/train/u-1/m", "--d", "/data"]
    assert container["env"][0] == {"name": "N", "value": "7"}
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "0.5G"},
        "limits": {"cpu": "2", "memory": "2Gi", "amd.com/gpu": "1"},
    }
    assert task_of(rendered)["outputParameters"] == {"o": "LIST"}
    assert "parameterValues" not in task_of(rendered)["executorInput"]["inputs"]
    absent = pod(built, action(inputs=Values({"v": "3.12"})))
    assert "--d" not in main(absent)["args"]


def test_an_old_accelerator_name_means_an_nvidia_gpu() -> None:
    built = pipeline({"resources": {"accelerator": {"type": "NVIDIA_TESLA_K80", "count": "2"}}})
    assert main(pod(built))["resources"] == {"limits": {"nvidia.com/gpu": "2"}}


def test_environment_from_secrets_config_maps_and_fields() -> None:
    started = action(
        secretAsEnv=[{"secretNameParameter": "s", "optional": True, "keyToEnv": [{"secretKey": "k", "envVar": "S"}]}],
        configMapAsEnv=[{"configMapName": "c", "keyToEnv": [{"configMapKey": "k", "envVar": "C"}]}],
        fieldPathAsEnv=[{"name": "IP", "fieldPath": "status.podIP"}],
    )
    env = {one["name"]: one.get("valueFrom") for one in main(pod(started=started))["env"]}
    assert env["S"] == {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}
    assert env["C"] == {"configMapKeyRef": {"name": "c", "key": "k"}}
    assert env["IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_volumes_are_shared_by_name_and_apart_where_sources_differ() -> None:
    started = action(
        secretAsVolume=[{"secretNameParameter": "same", "mountPath": "/s"}],
        configMapAsVolume=[{"configMapNameParameter": "same", "mountPath": "/c", "optional": True}],
        pvcMount=[
            {"pvcNameParameter": "my.claim", "mountPath": "/a"},
            {"pvcNameParameter": "my.claim", "mountPath": "/b", "subPath": "x"},
        ],
        emptyDirMounts=[{"volumeName": "tmp", "mountPath": "/t", "medium": "Memory", "sizeLimit": "1Gi"}],
        genericEphemeralVolume=[
            {
                "volumeName": "eph",
                "mountPath": "/e",
                "size": "2Gi",
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "f",
            }
        ],
        enabledSharedMemory={"size": "1Gi"},
    )
    spec = pod(started=started)["spec"]
    volumes = {one.pop("name"): one for one in spec["volumes"]}
    assert volumes == {
        "same": {"secret": {"secretName": "same"}},
        "same-1": {"configMap": {"name": "same", "optional": True}},
        "my-claim": {"persistentVolumeClaim": {"claimName": "my.claim"}},
        "tmp": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        "eph": {
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "2Gi"}},
                        "storageClassName": "f",
                    }
                }
            }
        },
        "shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    }
    mounts = {one["mountPath"]: one for one in spec["containers"][0]["volumeMounts"]}
    assert mounts["/c"]["name"] == "same-1"
    assert mounts["/b"] == {"name": "my-claim", "mountPath": "/b", "subPath": "x"}
    assert mounts["/dev/shm"]["name"] == "shm"


def test_placement_deadline_metadata_and_pull_settings() -> None:
    started = action(
        nodeSelector={"labels": {"a": "b"}},
        tolerations=[
            {"key": "k", "operator": "Exists", "tolerationSeconds": "30"},
            {"tolerationJson": [{"key": "j", "operator": "Exists"}, {"key": "l", "operator": "Exists"}]},
        ],
        nodeAffinity=[
            {"matchExpressions": [{"key": "x", "operator": "Exists"}]},
            {"matchExpressions": [{"key": "y", "operator": "Exists"}], "weight": 5},
        ],
        podAffinity=[{"matchPodLabels": {"app": "z"}, "topologyKey": "host", "anti": True}],
        podMetadata={"labels": {"team": "a", "pipeline/runid": "forged"}, "annotations": {"note": "b"}},
        imagePullSecret=[{"secretNameParameter": "reg"}],
        imagePullPolicy="Always",
        activeDeadlineSeconds="60",
        securityContext={"runAsUser": "1000", "runAsNonRoot": True},
        initContainers=[
            {"name": "i", "image": "busybox", "args": ["{{$.pipeline_job_uuid}}"], "restartPolicy": "Always"}
        ],
    )
    rendered = pod(started=started)
    spec = rendered["spec"]
    assert rendered["metadata"]["labels"]["team"] == "a"
    assert rendered["metadata"]["labels"]["pipeline/runid"] == "run-1"
    assert spec["nodeSelector"] == {"a": "b"}
    assert [one["key"] for one in spec["tolerations"]] == ["k", "j", "l"]
    assert spec["tolerations"][0]["tolerationSeconds"] == 30
    assert spec["affinity"]["nodeAffinity"].keys() == {
        "requiredDuringSchedulingIgnoredDuringExecution",
        "preferredDuringSchedulingIgnoredDuringExecution",
    }
    assert spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == [
        {"labelSelector": {"matchLabels": {"app": "z"}}, "topologyKey": "host"}
    ]
    assert spec["imagePullSecrets"] == [{"name": "reg"}]
    assert spec["activeDeadlineSeconds"] == 60
    assert main(rendered)["imagePullPolicy"] == "Always"
    assert main(rendered)["securityContext"] == {"runAsUser": 1000, "runAsNonRoot": True}
    assert spec["initContainers"] == [{"name": "i", "image": "busybox", "args": ["run-1"], "restartPolicy": "Always"}]
    selected = action(nodeSelector={"labels": {"a": "b"}, "nodeSelectorJson": {"c": "d"}})
    assert pod(started=selected)["spec"]["nodeSelector"] == {"c": "d"}


def test_a_component_that_creates_other_jobs_gets_the_settings_of_its_task() -> None:
    built = pipeline(
        {"resources": {"resourceCpuLimit": "2"}, "env": [{"name": "A", "value": "1"}]},
        {
            "inputDefinitions": {"parameters": {"tc": {"parameterType": "TASK_CONFIG"}}},
            "taskConfigPassthroughs": [
                {"field": "RESOURCES"},
                {"field": "ENV"},
                {"field": "KUBERNETES_NODE_SELECTOR"},
            ],
        },
    )
    rendered = pod(built, action(nodeSelector={"labels": {"a": "b"}}))
    config = task_of(rendered)["executorInput"]["inputs"]["parameterValues"]["tc"]
    assert config["resources"] == {"limits": {"cpu": "2"}}
    assert config["nodeSelector"] == {"a": "b"}
    assert config["env"] == [{"name": "A", "value": "1"}]
    assert "resources" not in main(rendered)
    assert "nodeSelector" not in rendered["spec"]
    assert [one["name"] for one in main(rendered)["env"]] == ["KFP_POD_NAME", "KFP_POD_UID", "KFP_RETRY_INDEX"]


@pytest.mark.parametrize(
    ("path", "parameters", "name"),
    [
        ("root/createpvc", {"pvc_name": "mine"}, r"mine"),
        ("root/createpvc", {"pvc_name_suffix": "-data"}, r"good-name-abcde-data"),
        ("root/loop[1]/createpvc", {"pvc_name_suffix": "data"}, r"good-name-abcde-[0-9a-f]{6}-data"),
    ],
)
def test_names_of_claims(path: str, parameters: Json, name: str) -> None:
    assert re.fullmatch(name, claim_name(RUN, action(path, Values(parameters))))


def test_a_claim_carries_what_the_task_says() -> None:
    parameters = {
        "pvc_name": "mine",
        "access_modes": ["ReadWriteMany"],
        "size": "5Mi",
        "storage_class_name": "",
        "annotations": {"a": "b"},
        "volume_name": "v",
    }
    claim = render_claim(RUN, action(inputs=Values(parameters)), namespace="team")
    assert claim["metadata"] == {
        "name": "mine",
        "namespace": "team",
        "labels": {"pipeline/runid": "run-1"},
        "annotations": {"a": "b"},
    }
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "5Mi"}},
        "storageClassName": "",
        "volumeName": "v",
    }
