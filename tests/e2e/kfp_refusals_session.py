"""
What the unmodified SDK shows of each wrong submission: status, shape, the field and what to do; prints ``ok``.

``python kfp_refusals_session.py URL``, in an environment with kfp.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
from kfp_server_api.exceptions import ApiException

URL = sys.argv[1]
CLIENT = kfp.Client(host=URL)
API = kfp_server_api.ApiClient(kfp_server_api.Configuration(host=URL))
RUNS, RECURRING = kfp_server_api.RunServiceApi(API), kfp_server_api.RecurringRunServiceApi(API)
GRPC = {400: (3, 9), 404: (5,), 409: (6, 10)}
ROOT = {"parameters": {"n": {"parameterType": "NUMBER_INTEGER"}, "c": {"parameterType": "STRING", "isOptional": True}}}
SPEC: dict[str, Any] = {
    "schemaVersion": "2.1.0",
    "pipelineInfo": {"name": "refused"},
    "root": {
        "inputDefinitions": ROOT,
        "dag": {
            "tasks": {
                "one": {
                    "componentRef": {"name": "comp"},
                    "inputs": {"parameters": {"n": {"componentInputParameter": "n"}}},
                }
            }
        },
    },
    "components": {
        "comp": {
            "executorLabel": "exec",
            "inputDefinitions": {"parameters": {"n": {"parameterType": "NUMBER_INTEGER"}}},
        }
    },
    "deploymentSpec": {"executors": {"exec": {"container": {"image": "alpine", "command": ["true"]}}}},
}
ONE = "root/dag/tasks/one"
EXECUTOR = "deploymentSpec/executors/exec"

# path in the pipeline, what is put there, what the message begins with or holds
PIPELINES: list[tuple[str, Any, str]] = [
    ("schemaVersion", "2.0.0", "schemaVersion: '2.0.0' is not supported"),
    ("pipelineInfo/name", "Not A Name", "pipelineInfo.name: Invalid value"),
    ("apiVersion", "argoproj.io/v1alpha1", "compile the pipeline with kfp 2"),
    ("root", {}, "root: Required value"),
    ("root/dag/tasks", [], "root.dag.tasks: Expected `object`, got `array`"),
    (f"{ONE}/componentRef/name", "none", "root.dag.tasks.one.componentRef.name: Invalid value"),
    (f"{ONE}/dependentTasks", ["one"], "tasks wait for each other"),
    (f"{ONE}/retries", 3, "root.dag.tasks.one: Object contains unknown field `retries`"),
    (f"{ONE}/inputs/parameters", {}, "root.dag.tasks.one.inputs.parameters.n: Required value"),
    (f"{ONE}/inputs/parameters/n", {"componentInputParameter": "x"}, "root.dag.tasks.one.inputs.parameters.n"),
    (f"{ONE}/triggerPolicy", {"condition": "size(n) > 1"}, "root.dag.tasks.one.triggerPolicy.condition: Forbidden"),
    (f"{ONE}/retryPolicy", {"maxRetryCount": -1}, "root.dag.tasks.one.retryPolicy.maxRetryCount: "),
    (
        f"{ONE}/parameterIterator",
        {"items": {"raw": "1"}, "itemInput": "n"},
        "root.dag.tasks.one.parameterIterator.items.raw: ",
    ),
    ("components/comp", {}, "components.comp: Required value: a 'dag' or an 'executorLabel'"),
    (f"{EXECUTOR}/container/image", "acme/train:7", "deploymentSpec.executors.exec.container.image: "),
    (f"{EXECUTOR}/container/image", "acme/train:7", "shallop env add acme/train:7"),
    (EXECUTOR, {"customJob": {}}, "deploymentSpec.executors.exec.customJob: Forbidden"),
]
SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"secretAsEnv": [{"secretName": 5}]}, ".executors.exec.secretAsEnv.0.secretName: Expected `str`, got `int`"),
    ({"emptyDirMounts": [{"volumeName": "x"}]}, ".emptyDirMounts.0: Object missing required field `mountPath`"),
]
PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({}, "runtime_config.parameters.n: Required value"),
    ({"n": "5"}, 'runtime_config.parameters.n: Invalid value: "5"'),
    ({"n": 5.5}, "runtime_config.parameters.n: Invalid value: 5.5"),
    ({"n": None}, "runtime_config.parameters.n: "),
    ({"n": 5, "m": 1}, "runtime_config.parameters.m: "),
]


def refused(status: int, text: str, call: Any, *arguments: Any, **named: Any) -> None:
    try:
        call(*arguments, **named)
    except ApiException as error:
        body = json.loads(error.body)
        assert error.status == status, (text, error)
        (detail,) = body["details"]
        assert body["code"] == detail["code"], body
        assert body["code"] in GRPC[status], body
        assert detail["@type"] == "type.googleapis.com/google.rpc.Status", body
        assert body["message"] == detail["message"], body
        assert text in detail["message"], (text, detail["message"])
        return
    raise AssertionError(f"was not refused: {text}")


def changed(path: str, value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(SPEC)
    at, keys = spec, path.split("/")
    for key in keys[:-1]:
        at = at.setdefault(key, {})
    at[keys[-1]] = value
    return spec


def run(spec: Any, parameters: Any = None, **more: Any) -> dict[str, Any]:
    config = {"parameters": {"n": 1} if parameters is None else parameters}
    return {"display_name": "refused", "pipeline_spec": spec, "runtime_config": config, **more}


def main() -> None:
    before = CLIENT.list_runs().total_size
    create, schedule = RUNS.run_service_create_run, RECURRING.recurring_run_service_create_recurring_run
    for path, value, text in PIPELINES:
        refused(400, text, create, run(changed(path, value)))
    for config, text in SETTINGS:
        platforms = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec": config}}}}}
        refused(400, text, create, run({"pipeline_spec": SPEC, "platform_spec": platforms}))
    trigger = {"periodic_schedule": {"interval_second": "3600"}}
    for parameters, text in PARAMETERS:
        refused(400, text, create, run(SPEC, parameters))
        refused(400, text, schedule, run(SPEC, parameters, max_concurrency="1", trigger=trigger, mode="DISABLE"))
    refused(400, "run.display_name: required", create, run(SPEC, display_name=""))
    refused(
        400,
        "runtime_config.pipeline_root: 'relative'",
        create,
        {**run(SPEC), "runtime_config": {"parameters": {"n": 1}, "pipeline_root": "relative"}},
    )
    refused(400, "a pipeline is required", create, {"display_name": "x"})
    reference = {"pipeline_id": "none"}
    refused(404, "pipeline_version_reference", create, {"display_name": "x", "pipeline_version_reference": reference})
    refused(404, "run.experiment_id: no experiment 'none'", create, run(SPEC, experiment_id="none"))
    refused(400, "colour", create, run(SPEC, colour="red"))
    cron = {"cron_schedule": {"cron": "* * * * *"}}
    refused(400, "trigger.cron_schedule.cron", schedule, run(SPEC, max_concurrency="1", trigger=cron))
    refused(400, "max_concurrency: 11", schedule, run(SPEC, max_concurrency="11", trigger=trigger))
    refused(404, "run_id: no run 'none'", CLIENT.get_run, "none")
    refused(404, "no run 'none'", CLIENT.terminate_run, "none")
    experiment = CLIENT.create_experiment("refusals")
    CLIENT.archive_experiment(experiment.experiment_id)
    refused(400, "is archived", create, run(SPEC, experiment_id=experiment.experiment_id))
    assert CLIENT.list_runs().total_size == before

    # Uploads answer in a shape of their own.
    for content, text in (("a: [", "not valid YAML"), (json.dumps(changed("root", {})), "root: Required value")):
        file = Path(tempfile.mkdtemp()) / "pipeline.yaml"
        file.write_text(content)
        try:
            CLIENT.upload_pipeline(str(file), "refused")
        except ApiException as error:
            body = json.loads(error.body)
            assert error.status == 400, error
            assert text in body["error_message"] == body["error_details"], body
        else:
            raise AssertionError(f"was not refused: {text}")
    print("ok")


main()
