"""
What the unmodified kfp and kubernetes clients see of a server with several users; prints ``ok`` at the end.

``python kfp_users_session.py URL KUBECONFIG``: team-a has an editor, team-b another one, and a viewer of both.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kfp
import kubernetes
from kfp import dsl
from kfp_server_api.exceptions import ApiException

URL, KUBECONFIG = sys.argv[1:3]


@dsl.container_component
def greet(name: str, text: dsl.OutputPath(str)):
    script = 'mkdir -p "$(dirname "$1")"; echo "$0 of $POD_NAMESPACE" | tee "$1"'
    return dsl.ContainerSpec(image="alpine", command=["sh", "-c", script, name, text])


@dsl.pipeline(name="greeting")
def greeting(name: str = "somebody") -> str:
    return greet(name=name).outputs["text"]


def refused(status: int, call: Callable[[], Any]) -> str:
    try:
        call()
    except ApiException as error:
        assert error.status == status, error
        return str(error.body)
    raise AssertionError(f"was not refused with {status}")


def make_users() -> dict[str, str]:
    """Make namespaces and accounts; return a token for each."""
    kubernetes.config.load_kube_config(KUBECONFIG)
    core, rbac = kubernetes.client.CoreV1Api(), kubernetes.client.RbacAuthorizationV1Api()
    for name in ("team-a", "team-b"):
        core.create_namespace({"metadata": {"name": name}})
    for account in ("anna", "bert", "vera"):
        core.create_namespaced_service_account("default", {"metadata": {"name": account}})
    bindings = (("team-a", "anna", "edit"), ("team-b", "bert", "edit"), ("team-a", "vera", "view"))
    for namespace, account, role in bindings:
        binding = {
            "metadata": {"name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "default"}],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": f"kubeflow-pipelines-{role}",
            },
        }
        rbac.create_namespaced_role_binding(namespace, binding)
    tokens = {}
    for account in ("anna", "bert", "vera"):
        asked = {"spec": {"audiences": ["pipelines.kubeflow.org"], "expirationSeconds": 3600}}
        answer = core.create_namespaced_service_account_token(account, "default", asked)
        tokens[account] = answer.status.token
    return tokens


def main() -> None:
    tokens = make_users()
    anna, bert, vera = (kfp.Client(host=URL, existing_token=tokens[name]) for name in ("anna", "bert", "vera"))
    nobody = kfp.Client(host=URL)
    refused(401, lambda: nobody.list_experiments(namespace="team-a"))
    refused(401, lambda: kfp.Client(host=URL, existing_token="wrong").list_experiments(namespace="team-a"))

    # Everybody works in a namespace of his own; equal names do not meet.
    work, other = (
        client.create_experiment("work", namespace=ns) for client, ns in ((anna, "team-a"), (bert, "team-b"))
    )
    assert (work.namespace, other.namespace) == ("team-a", "team-b")
    assert anna.get_experiment(experiment_name="work", namespace="team-a").experiment_id == work.experiment_id
    assert "team-b" in refused(403, lambda: anna.create_experiment("spy", namespace="team-b"))
    refused(403, lambda: anna.get_experiment(experiment_id=other.experiment_id))
    refused(403, lambda: bert.list_runs(experiment_id=work.experiment_id))
    assert "namespace: required" in refused(400, lambda: anna.list_runs())

    # A run goes in the namespace of its experiment, its Pods too.
    run = anna.create_run_from_pipeline_func(
        greeting, arguments={"name": "anna"}, experiment_name="work", namespace="team-a", enable_caching=True
    )
    assert anna.wait_for_run_completion(run.run_id, 60, 0.2).state == "SUCCEEDED"
    core = kubernetes.client.CoreV1Api()
    (pod,) = core.list_namespaced_pod("team-a").items
    assert pod.metadata.labels["pipeline/runid"] == run.run_id
    assert not core.list_namespaced_pod("kubeflow").items
    assert [one.run_id for one in anna.list_runs(namespace="team-a").runs] == [run.run_id]
    assert vera.get_run(run.run_id).state == "SUCCEEDED"
    refused(403, lambda: vera.terminate_run(run.run_id))
    refused(403, lambda: vera.delete_run(run.run_id))
    refused(403, lambda: bert.get_run(run.run_id))

    # What one namespace has kept is no other's cache.
    again = bert.create_run_from_pipeline_func(
        greeting, arguments={"name": "anna"}, experiment_name="work", namespace="team-b", enable_caching=True
    )
    assert bert.wait_for_run_completion(again.run_id, 60, 0.2).state == "SUCCEEDED"
    assert len(core.list_namespaced_pod("team-b").items) == 1

    # Pipelines belong to a namespace, or to all when an administrator shares them.
    with tempfile.TemporaryDirectory() as folder:
        package = os.path.join(folder, "greeting.yaml")
        kfp.compiler.Compiler().compile(greeting, package)
        own = anna.upload_pipeline(package, "greeting", namespace="team-a")
        assert own.namespace == "team-a"
        assert bert.upload_pipeline(package, "greeting", namespace="team-b").namespace == "team-b"
        refused(403, lambda: bert.get_pipeline(own.pipeline_id))
        version = anna.list_pipeline_versions(own.pipeline_id).pipeline_versions[0].pipeline_version_id
        refused(403, lambda: bert.run_pipeline(other.experiment_id, "x", None, {}, own.pipeline_id, version))
        assert vera.get_pipeline(own.pipeline_id).display_name == "greeting"
        refused(403, lambda: vera.delete_pipeline(own.pipeline_id))
        admin = kfp.Client(host=URL, existing_token=Path(KUBECONFIG).with_name("token").read_text().strip())
        assert "no namespace 'nowhere'" in refused(404, lambda: admin.create_experiment("x", namespace="nowhere"))
        everyones = admin.upload_pipeline(package, "everyones")
        assert [one.pipeline_id for one in bert.list_pipelines().pipelines] == [everyones.pipeline_id]
        refused(403, lambda: anna.upload_pipeline(package, "mine for all"))
        refused(403, lambda: anna.delete_pipeline(everyones.pipeline_id))
    scheduled = anna.create_recurring_run(
        work.experiment_id,
        "nightly",
        cron_expression="0 0 3 * * *",
        pipeline_id=own.pipeline_id,
        version_id=version,
    )
    assert scheduled.namespace == "team-a"
    refused(403, lambda: bert.disable_recurring_run(scheduled.recurring_run_id))
    refused(403, lambda: vera.delete_recurring_run(scheduled.recurring_run_id))
    assert [one.display_name for one in vera.list_recurring_runs(namespace="team-a").recurring_runs] == ["nightly"]
    anna.delete_recurring_run(scheduled.recurring_run_id)
    print("ok")


main()
