"""What a user does with the unmodified kfp SDK and CLI; run by test_kfp_client.py in an environment that has kfp."""

import datetime
import json
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kfp
from click.testing import CliRunner
from kfp import compiler, dsl
from kfp.cli.cli import cli as kfp_command
from kfp.dsl import Dataset, Input, Output
from kfp_server_api import ApiException

URL = sys.argv[1]
client = kfp.Client(host=URL, namespace="kubeflow")


@dsl.component
def make(rows: int, data: Output[Dataset]) -> str:
    with open(data.path, "w") as file:
        file.write("x\n" * rows)
    data.metadata["rows"] = rows
    print("made", rows)
    return "made"


@dsl.component
def count(data: Input[Dataset]) -> int:
    with open(data.path) as file:
        return len(file.readlines())


@dsl.component
def fail(when: int):
    if when == 3:
        raise ValueError("three is not allowed")


@dsl.pipeline
def counting(rows: int = 4) -> int:
    made = make(rows=rows)
    counted = count(data=made.outputs["data"])
    with dsl.If(counted.output > 100):
        make(rows=1)
    return counted.output


@dsl.pipeline
def failing():
    with dsl.ParallelFor([1, 2, 3], parallelism=1) as item:
        fail(when=item)


@dsl.pipeline
def slow(seconds: int = 60):
    @dsl.container_component
    def sleep(seconds: int):
        return dsl.ContainerSpec(image="alpine", command=["sleep", seconds])

    sleep(seconds=seconds)


def wait(run_id: str) -> Any:
    return client.wait_for_run_completion(run_id, timeout=90, sleep_duration=0.05)


def refused(call: Any, status: int, text: str) -> None:
    try:
        call()
    except ApiException as error:
        assert error.status == status, error
        assert text in error.body, error.body
    else:
        raise AssertionError(f"not refused: {text}")


def experiments() -> None:
    made = client.create_experiment("first", description="d")
    assert client.create_experiment("first").experiment_id == made.experiment_id
    assert client.get_experiment(experiment_name="first").description == "d"
    client.archive_experiment(made.experiment_id)
    assert client.get_experiment(made.experiment_id).storage_state == "ARCHIVED"
    client.unarchive_experiment(made.experiment_id)
    listed = client.list_experiments(page_size=1, sort_by="created_at desc", namespace="kubeflow")
    assert listed.experiments[0].display_name == "first"
    client.delete_experiment(made.experiment_id)


def pipelines(package: str) -> None:
    made = client.upload_pipeline(package, pipeline_name="counting", description="d")
    version = client.upload_pipeline_version(package, "v2", pipeline_id=made.pipeline_id)
    assert client.get_pipeline_id("counting") == made.pipeline_id
    assert client.get_pipeline_version(made.pipeline_id, version.pipeline_version_id).name == "v2"
    names = [one.name for one in client.list_pipeline_versions(made.pipeline_id).pipeline_versions]
    assert sorted(names) == ["counting", "v2"]
    refused(lambda: client.upload_pipeline(package, pipeline_name="counting"), 409, "already exists")
    experiment = client.create_experiment("versions")
    ids = {"pipeline_id": made.pipeline_id, "version_id": version.pipeline_version_id}
    run = client.run_pipeline(experiment.experiment_id, "by version", **ids)
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert wait(run.run_id).state == "SUCCEEDED"
    refused(lambda: client.delete_pipeline(made.pipeline_id), 400, "cascade")
    for one in client.list_pipeline_versions(made.pipeline_id).pipeline_versions:
        client.delete_pipeline_version(made.pipeline_id, one.pipeline_version_id)
    client.delete_pipeline(made.pipeline_id)
    bad = Path(package).with_name("bad.yaml")
    bad.write_text("a: 1\n")
    refused(lambda: client._upload_api.upload_pipeline(str(bad), name="bad"), 400, "schemaVersion")


def pipelines_from_a_url(package: str) -> None:
    """The server fetches the package itself."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(Path(package).parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        base, api = f"http://127.0.0.1:{files.server_port}", client._pipelines_api
        url = {"pipeline_url": f"{base}/{Path(package).name}"}
        body = {"pipeline": {"display_name": "by-url"}, "pipeline_version": {"package_url": url}}
        made = api.pipeline_service_create_pipeline_and_version(body)
        second = api.pipeline_service_create_pipeline_version(made.pipeline_id, {"name": "v2", "package_url": url})
        nowhere = {"name": "v3", "package_url": {"pipeline_url": f"{base}/nowhere.yaml"}}
        refused(lambda: api.pipeline_service_create_pipeline_version(made.pipeline_id, nowhere), 400, "pipeline_url")
        files.shutdown()
    assert second.pipeline_spec["pipelineInfo"]["name"] == "counting"
    versions = client.list_pipeline_versions(made.pipeline_id).pipeline_versions
    assert {one.package_url.pipeline_url for one in versions} == set(url.values())


def runs() -> None:
    first = client.create_run_from_pipeline_func(counting, arguments={"rows": 5}, enable_caching=True)
    assert wait(first.run_id).state == "SUCCEEDED"
    details = client.get_run(first.run_id).run_details.task_details
    assert {task.display_name: task.state for task in details} == {
        "root": "SUCCEEDED",
        "make": "SUCCEEDED",
        "count": "SUCCEEDED",
        "condition-1": "SKIPPED",
    }
    again = client.create_run_from_pipeline_func(counting, arguments={"rows": 5}, enable_caching=True)
    assert wait(again.run_id).state == "SUCCEEDED"
    cached = {task.display_name: task for task in client.get_run(again.run_id).run_details.task_details}
    assert cached["make"].state == cached["count"].state == "SKIPPED"
    (before,) = [task for task in details if task.display_name == "make"]
    assert cached["make"].outputs["data"].artifact_ids == before.outputs["data"].artifact_ids
    refused(lambda: client.create_run_from_pipeline_func(counting, arguments={"rows": "x"}), 400, "parameters.rows")
    refused(lambda: client.create_run_from_pipeline_func(counting, arguments={"colour": 1}), 400, "parameters.colour")
    client.archive_run(first.run_id)
    where = json.dumps({"predicates": [{"operation": 1, "key": "storage_state", "stringValue": "ARCHIVED"}]})
    assert [run.run_id for run in client.list_runs(filter=where).runs] == [first.run_id]
    client.unarchive_run(first.run_id)
    client.terminate_run(first.run_id)
    assert client.get_run(first.run_id).state == "SUCCEEDED"
    client.delete_run(first.run_id)
    refused(lambda: client.get_run(first.run_id), 404, "no run")


def ends() -> None:
    failed = wait(client.create_run_from_pipeline_func(failing).run_id)
    assert failed.state == "FAILED"
    assert "three is not allowed" in failed.error.message
    stopped = client.create_run_from_pipeline_func(slow)
    client.terminate_run(stopped.run_id)
    over = wait(stopped.run_id)
    assert (over.state, "terminated" in over.error.message) == ("FAILED", True)
    client._run_api.run_service_retry_run(failed.run_id)
    assert client.get_run(failed.run_id).finished_at.year == 1970
    assert wait(failed.run_id).state == "FAILED"
    tasks = client.get_run(failed.run_id).run_details.task_details
    assert sorted(len(task.executor_detail.failed_main_jobs or []) for task in tasks if task.pod_name) == [0, 0, 1]


def schedules(package: str) -> None:
    experiment = client.create_experiment("schedules")
    made = client.create_recurring_run(
        experiment.experiment_id,
        "every second",
        interval_second=1,
        max_concurrency=1,
        no_catchup=True,
        pipeline_package_path=package,
        params={"rows": 2},
    )
    assert (made.status, made.trigger.periodic_schedule.interval_second) == ("ENABLED", "1")
    deadline = time.monotonic() + 60
    while not (started := client.list_runs(experiment_id=experiment.experiment_id).runs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.disable_recurring_run(made.recurring_run_id)
    assert client.get_recurring_run(made.recurring_run_id).status == "DISABLED"
    assert started[0].display_name.startswith("every second-1-")
    assert started[0].scheduled_at - made.created_at >= datetime.timedelta(seconds=1)
    assert wait(started[0].run_id).state == "SUCCEEDED"
    cron = client.create_recurring_run(
        experiment.experiment_id,
        "at night",
        cron_expression="0 0 3 * * *",
        start_time="2030-01-01T00:00:00Z",
        pipeline_package_path=package,
        enabled=False,
    )
    listed = client.list_recurring_runs(experiment_id=experiment.experiment_id, sort_by="created_at desc")
    assert [one.display_name for one in listed.recurring_runs] == ["at night", "every second"]
    client.enable_recurring_run(cron.recurring_run_id)
    assert client.get_recurring_run(cron.recurring_run_id).trigger.cron_schedule.start_time.year == 2030
    for one in (made, cron):
        client.delete_recurring_run(one.recurring_run_id)
    assert not client.list_recurring_runs(experiment_id=experiment.experiment_id).recurring_runs


def kfp_cli(*arguments: str) -> str:
    """Run a command in this process, with yes to its questions: an interpreter for each would take seconds."""
    done = CliRunner().invoke(kfp_command, ["--endpoint", URL, "--output", "json", *arguments], input="y\n", obj={})
    assert done.exit_code == 0, (arguments, done.output[-2000:], done.exception)
    return str(done.output)


def cli(package: str) -> None:
    """Every command that speaks with a server, once."""
    program = [str(Path(sys.executable).with_name("kfp")), "--endpoint", URL, "--output", "json", "experiment"]
    subprocess.run([*program, "create", "from-cli"], capture_output=True, timeout=120, check=True)
    assert "from-cli" in kfp_cli("experiment", "list")
    experiment = client.get_experiment(experiment_name="from-cli").experiment_id
    assert json.loads(kfp_cli("experiment", "get", experiment))["display_name"] == "from-cli"
    cli_pipelines(package)
    cli_runs(package, experiment)
    cli_recurring_runs(package, experiment)
    kfp_cli("experiment", "archive", "--experiment-name", "from-cli")
    assert client.get_experiment(experiment).storage_state == "ARCHIVED"
    kfp_cli("experiment", "unarchive", "--experiment-id", experiment)
    assert client.get_experiment(experiment).storage_state == "AVAILABLE"
    kfp_cli("experiment", "delete", experiment)
    refused(lambda: client.get_experiment(experiment), 404, "no experiment")


def cli_pipelines(package: str) -> None:
    kfp_cli("pipeline", "create", "-p", "cli", "-d", "made by hand", package)
    assert "cli" in kfp_cli("pipeline", "list")
    pipeline = str(client.get_pipeline_id("cli"))
    assert "made by hand" in kfp_cli("pipeline", "get", pipeline)
    kfp_cli("pipeline", "create-version", "-v", "second", "-n", "cli", package)
    versions = client.list_pipeline_versions(pipeline).pipeline_versions
    assert "second" in kfp_cli("pipeline", "list-versions", pipeline)
    assert versions[0].display_name in kfp_cli("pipeline", "get-version", pipeline, versions[0].pipeline_version_id)
    for version in versions:
        kfp_cli("pipeline", "delete-version", pipeline, version.pipeline_version_id)
    kfp_cli("pipeline", "delete", pipeline)
    refused(lambda: client.get_pipeline(pipeline), 404, "no pipeline")


def cli_runs(package: str, experiment: str) -> None:
    kfp_cli("run", "create", "-e", "from-cli", "-r", "cli-run", "-f", package, "--watch", "rows=6")
    assert "cli-run" in kfp_cli("run", "list", "-e", experiment)
    (run,) = client.list_runs(experiment_id=experiment).runs
    assert run.state == "SUCCEEDED"
    assert run.run_id in kfp_cli("run", "get", run.run_id)
    kfp_cli("run", "archive", run.run_id)
    assert client.get_run(run.run_id).storage_state == "ARCHIVED"
    kfp_cli("run", "unarchive", run.run_id)
    assert client.get_run(run.run_id).storage_state == "AVAILABLE"
    kfp_cli("run", "delete", run.run_id)
    refused(lambda: client.get_run(run.run_id), 404, "no run")


def cli_recurring_runs(package: str, experiment: str) -> None:
    options = {"experiment-name": "from-cli", "job-name": "cli-job", "interval-second": "3600", "max-concurrency": "1"}
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    kfp_cli("recurring-run", "create", *given, "--pipeline-package-path", package)
    assert "cli-job" in kfp_cli("recurring-run", "list", "-e", experiment)
    (job,) = client.list_recurring_runs(experiment_id=experiment).recurring_runs
    assert "cli-job" in kfp_cli("recurring-run", "get", job.recurring_run_id)
    kfp_cli("recurring-run", "disable", job.recurring_run_id)
    assert client.get_recurring_run(job.recurring_run_id).status == "DISABLED"
    kfp_cli("recurring-run", "enable", job.recurring_run_id)
    assert client.get_recurring_run(job.recurring_run_id).status == "ENABLED"
    kfp_cli("recurring-run", "delete", job.recurring_run_id)
    refused(lambda: client.get_recurring_run(job.recurring_run_id), 404, "no recurring run")


with tempfile.TemporaryDirectory() as folder:
    package = f"{folder}/counting.yaml"
    compiler.Compiler().compile(counting, package)
    experiments()
    pipelines(package)
    pipelines_from_a_url(package)
    runs()
    ends()
    schedules(package)
    cli(package)
print("ok")
