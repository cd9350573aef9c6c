"""What a user does with the ``kubeflow-katib`` client; run by its own interpreter: SCRIPT KUBECONFIG DB_MANAGER."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from kubeflow import katib
from kubernetes import client, config
from kubernetes.client import ApiException

NAMESPACE = "katib-client"
IMAGE = "python:3.11"


def objective(parameters: dict[str, str]) -> None:
    x, y = float(parameters["x"]), int(parameters["y"])
    print(f"loss={(x - 0.3) ** 2 + y}")


def main(kubeconfig: str, db_manager: str) -> None:
    config.load_kube_config(kubeconfig)
    core = client.CoreV1Api()
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    katib_client = katib.KatibClient(config_file=kubeconfig, namespace=NAMESPACE)
    tune_and_read(katib_client, db_manager)
    edit_the_budget(katib_client)
    push(katib_client, db_manager)
    collect_by_a_container_of_its_own(katib_client, db_manager)
    refuse(katib_client)


def tune_and_read(katib_client: Any, db_manager: str) -> None:
    katib_client.tune(
        name="tuned",
        objective=objective,
        base_image=IMAGE,
        parameters={"x": katib.search.double(min=0, max=1), "y": katib.search.int(min=1, max=3)},
        algorithm_name="tpe",
        objective_type="minimize",
        objective_metric_name="loss",
        max_trial_count=4,
        parallel_trial_count=2,
        max_failed_trial_count=1,
        retain_trials=True,
    )
    wait(katib_client, "tuned")
    assert katib_client.is_experiment_succeeded("tuned")
    best = katib_client.get_optimal_hyperparameters("tuned")
    assert {one.name for one in best.parameter_assignments} == {"x", "y"}, best
    details = katib_client.get_success_trial_details("tuned")
    assert len(details) == 4, details
    trials = katib_client.list_trials("tuned")
    assert {trial.metadata.name for trial in trials} == {one["name"] for one in details}
    losses = {}
    for trial in trials:
        metrics = katib_client.get_trial_metrics(trial.metadata.name, db_manager_address=db_manager)
        assert [log.metric.name for log in metrics] == ["loss"], metrics
        losses[trial.metadata.name] = float(metrics[0].metric.value)
    assert best.best_trial_name == min(losses, key=lambda name: losses[name])
    suggestion = katib_client.get_suggestion("tuned")
    assert suggestion.status.suggestion_count == 4, suggestion.status
    assert katib_client.get_trial(best.best_trial_name).spec.parameter_assignments == best.parameter_assignments
    assert [experiment.metadata.name for experiment in katib_client.list_experiments()] == ["tuned"]
    assert "loss=" in str(katib_client.core_api.read_namespaced_pod_log(
        katib_client.core_api.list_namespaced_pod(
            NAMESPACE, label_selector=f"katib.kubeflow.org/trial={best.best_trial_name}"
        ).items[0].metadata.name,
        NAMESPACE,
        container="metrics-logger-and-collector",
    ))  # fmt: skip
    katib_client.delete_experiment("tuned")
    wait_until_gone(katib_client, "tuned")


def template(command: list[str], annotations: dict[str, str] | None = None) -> Any:
    return katib.V1beta1TrialTemplate(
        primary_container_name="main",
        trial_parameters=[katib.V1beta1TrialParameterSpec(name="rate", reference="x")],
        trial_spec={
            "apiVersion": "batch/v1",
            "kind": "Job",
            "spec": {
                "template": {
                    "metadata": {"annotations": annotations or {}},
                    "spec": {
                        "restartPolicy": "Never",
                        "containers": [{"name": "main", "image": IMAGE, "command": command}],
                    },
                }
            },
        },
    )


def experiment(name: str, trial_template: Any, **spec: Any) -> Any:
    space = katib.V1beta1FeasibleSpace(min="0", max="1")
    return katib.V1beta1Experiment(
        api_version="kubeflow.org/v1beta1",
        kind="Experiment",
        metadata=katib.models.V1ObjectMeta(name=name, namespace=NAMESPACE),
        spec=katib.V1beta1ExperimentSpec(
            objective=katib.V1beta1ObjectiveSpec(type="minimize", objective_metric_name="loss"),
            algorithm=katib.V1beta1AlgorithmSpec(algorithm_name="random"),
            parameters=[katib.V1beta1ParameterSpec(name="x", parameter_type="double", feasible_space=space)],
            trial_template=trial_template,
            parallel_trial_count=2,
            **spec,
        ),
    )


def edit_the_budget(katib_client: Any) -> None:
    body = experiment(
        "edited",
        template(["python3", "-c", "'print(\"loss=${trialParameters.rate}\")'"]),
        max_trial_count=2,
        resume_policy="LongRunning",
    )
    katib_client.create_experiment(body)
    wait(katib_client, "edited")
    katib_client.edit_experiment_budget("edited", max_trial_count=5, parallel_trial_count=3)
    deadline = time.monotonic() + 60
    while len(katib_client.get_success_trial_details("edited") or []) < 5:
        assert time.monotonic() < deadline, katib_client.get_experiment("edited").status
        time.sleep(0.2)
    wait(katib_client, "edited")
    assert katib_client.get_experiment("edited").status.trials == 5


def push(katib_client: Any, db_manager: str) -> None:
    script = (
        "import kubeflow.katib as katib; "
        "[katib.report_metrics({'loss': float('${trialParameters.rate}') + step}) for step in (2, 1, 0)]"
    )
    body = experiment(
        "pushed",
        template(["python3", "-c", script], {"environment.shallop.dev/requirements": "kubeflow-katib==0.19.0"}),
        max_trial_count=2,
        metrics_collector_spec=katib.V1beta1MetricsCollectorSpec(collector=katib.V1beta1CollectorSpec(kind="Push")),
    )
    katib_client.create_experiment(body)
    wait(katib_client, "pushed")
    trials = katib_client.list_trials("pushed")
    assert len(trials) == 2
    for trial in trials:
        metrics = katib_client.get_trial_metrics(trial.metadata.name, db_manager_address=db_manager)
        values = [float(log.metric.value) for log in metrics]
        rate = float(trial.spec.parameter_assignments[0].value)
        assert values == [rate + 2, rate + 1, rate], values
        assert float(trial.status.observation.metrics[0].min) == rate


COLLECTOR = """
import os, sys, time
import kubeflow.katib as katib
path, deadline = sys.argv[1], time.monotonic() + 60
while not (os.path.exists(path) and open(path).read().endswith("end\\n")):
    assert time.monotonic() < deadline, "no metrics file"
    time.sleep(0.05)
for line in open(path):
    if line.startswith("loss is "):
        katib.report_metrics({"loss": float(line.removeprefix("loss is "))}, db_manager_address=sys.argv[2])
"""


def collect_by_a_container_of_its_own(katib_client: Any, db_manager: str) -> None:
    """The user's collector sees the file that the trial writes, knows the trial, and reports as Katib's own do."""
    writer = (
        "rate = ${trialParameters.rate}; file = open('/katib/own.log', 'w'); "
        "[print(line, file=file) for line in (f'loss is {rate + 1}', f'loss is {rate}', 'end')]"
    )
    body = experiment(
        "custom",
        template(["python3", "-c", writer], {"environment.shallop.dev/requirements": "kubeflow-katib==0.19.0"}),
        max_trial_count=1,
        metrics_collector_spec={
            "collector": {
                "kind": "Custom",
                "customCollector": {
                    "name": "own-collector",
                    "image": IMAGE,
                    "command": ["python3", "-c", COLLECTOR],
                    "args": ["/katib/own.log", "katib-db-manager.kubeflow:6789"],
                },
            },
            "source": {"fileSystemPath": {"path": "/katib/own.log", "kind": "File"}},
        },
    )
    body.spec.parallel_trial_count = 1
    katib_client.create_experiment(body)
    wait(katib_client, "custom")
    (trial,) = katib_client.list_trials("custom")
    rate = float(trial.spec.parameter_assignments[0].value)
    metrics = katib_client.get_trial_metrics(trial.metadata.name, db_manager_address=db_manager)
    assert [float(log.metric.value) for log in metrics] == [rate + 1, rate], metrics
    assert float(trial.status.observation.metrics[0].min) == rate, trial.status


def refuse(katib_client: Any) -> None:
    body = experiment("refused", template(["python3", "-c", "1"]), max_trial_count=2)
    body.spec.algorithm.algorithm_name = "magic"
    try:
        katib_client.create_experiment(body)
    except RuntimeError as error:
        cause = error.__context__
        assert isinstance(cause, ApiException), cause
        assert "spec.algorithm.algorithmName" in cause.body, cause.body
        assert "spec.trialTemplate.trialParameters[0].name" in cause.body, cause.body
    else:
        raise AssertionError("an unknown algorithm was accepted")


def wait(katib_client: Any, name: str) -> None:
    katib_client.wait_for_experiment_condition(name, timeout=200, polling_interval=1)


def wait_until_gone(katib_client: Any, name: str) -> None:
    deadline = time.monotonic() + 60
    while name in [found.metadata.name for found in katib_client.list_experiments()]:
        assert time.monotonic() < deadline, f"{name} is still there"
        time.sleep(0.1)


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    main(sys.argv[1], sys.argv[2])
    print("ok")
