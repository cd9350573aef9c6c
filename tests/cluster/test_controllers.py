"""
The controllers against a cluster over TLS, as a ServiceAccount that may only do what ``shallop install`` grants.

The cluster is a second instance of ours that runs nothing but Kubernetes; with ``SHALLOP_TEST_KUBECONFIG`` (the
kubeconfig of an administrator) any other one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEADLINE_S = 100.0
pytestmark = pytest.mark.timeout(400)
NAMESPACE = "shallop-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:shallop-controllers"
REAL = os.environ.get("SHALLOP_TEST_KUBECONFIG", "")
SERVE = "import http.server as h; h.ThreadingHTTPServer(('0.0.0.0', 8080), h.SimpleHTTPRequestHandler).serve_forever()"

Object = dict[str, Any]


def until(check: Callable[[], Any], what: str) -> Any:
    """Return the first true result of ``check``."""
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


class Cluster:
    """A cluster with the types and roles of ``shallop install``, and controllers of ours beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kubeconfig = REAL
        self.account = folder / "account.yaml"
        self.replicas: list[Replica] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def shallop(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "shallop.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, f"shallop {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def up(self) -> None:
        if REAL:
            return
        ports = ("--port", "auto", "--api-port", str(self.port))
        self.shallop("up", "--detach", "--bare", *ports, "--home", str(self.home))
        self.kubeconfig = str(self.home / "kubeconfig")

    def kill(self) -> None:
        os.kill(json.loads((self.home / "status.json").read_text())["pid"], signal.SIGKILL)

    def down(self) -> None:
        for replica in self.replicas:
            replica.end()
        if not REAL:
            self.shallop("down", "--home", str(self.home))

    def kubectl(self, *arguments: str, stdin: Any = None, check: bool = True, account: bool = False) -> str:
        kubeconfig = str(self.account) if account else self.kubeconfig
        done = subprocess.run(
            ["kubectl", "--kubeconfig", kubeconfig, *arguments],
            input=json.dumps(stdin) if stdin else "",
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def get(self, kind: str, name: str, namespace: str) -> Object:
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return dict(json.loads(text)) if text.strip() else {}

    def log_in(self) -> None:
        """Write a kubeconfig of the ServiceAccount."""
        config = yaml.safe_load(self.kubectl("config", "view", "--minify", "--flatten", "--raw"))
        token = self.kubectl("create", "token", "shallop-controllers", "-n", NAMESPACE).strip()
        config["users"] = [{"name": "account", "user": {"token": token}}]
        config["contexts"][0]["context"] |= {"user": "account", "namespace": NAMESPACE}
        self.account.write_text(yaml.safe_dump(config))

    def holder(self) -> str:
        return str((self.get("lease", "shallop-controllers", NAMESPACE).get("spec") or {}).get("holderIdentity") or "")


class Replica:
    """One process of ``shallop controllers``."""

    def __init__(self, cluster: Cluster, lease_s: int = 15) -> None:
        folder = cluster.folder / f"replica-{len(cluster.replicas)}"
        folder.mkdir()
        self.log = folder / "log"
        command = [sys.executable, "-m", "shallop.cli", "controllers", "--kubeconfig", str(cluster.account)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--leader-elect", "--lease-duration", str(lease_s)],
                env=os.environ | {"SHALLOP_HOME": str(folder / "home")},
                stdout=log,
                stderr=log,
            )
        cluster.replicas.append(self)

    def leads(self, cluster: Cluster) -> bool:
        return f"_{self.process.pid}_" in cluster.holder()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, kubectl: str) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.up()
    try:
        # The Deployment's image does not exist here: the controllers run beside the cluster instead.
        cluster.shallop("install", "--kubeconfig", cluster.kubeconfig, "--replicas", "0")
        cluster.log_in()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def leader(cluster: Cluster) -> Replica:
    running = [replica for replica in cluster.replicas if replica.process.poll() is None]
    replica = running[0] if running else Replica(cluster)
    until(lambda: replica.leads(cluster), "a replica leads")
    return replica


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"homes-{abs(hash(request.node.name)) % 10**8}-{os.getpid()}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def service(name: str, namespace: str, **predictor: Any) -> Object:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"predictor": predictor},
    }


def own_server() -> list[Object]:
    return [{"name": "main", "image": "python:3.11", "command": ["python3", "-c", SERVE]}]


def is_ready(obj: Object) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def test_a_service_becomes_a_deployment_and_its_status_follows(
    cluster: Cluster, leader: Replica, namespace: str
) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=service("own", namespace, containers=own_server()))
    isvc = until(
        lambda: (o := cluster.get("inferenceservice", "own", namespace)) and is_ready(o) and o, "the service is ready"
    )
    owner = isvc["metadata"]["uid"]
    deployment = cluster.get("deployment", "own-predictor", namespace)
    assert deployment["metadata"]["ownerReferences"][0]["uid"] == owner
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "python:3.11"
    assert cluster.get("service", "own-predictor", namespace)["spec"]["ports"][0]["port"] == 80
    assert isvc["status"]["address"]["url"] == f"http://own-predictor.{namespace}.svc.cluster.local"
    until(lambda: "InferenceServiceReady" in cluster.kubectl("get", "events", "-n", namespace), "an Event says so")

    scale = json.dumps({"spec": {"predictor": {"minReplicas": 2}}})
    cluster.kubectl("patch", "inferenceservice", "own", "-n", namespace, "--type=merge", "-p", scale)
    until(lambda: cluster.get("deployment", "own-predictor", namespace)["spec"]["replicas"] == 2, "two replicas")
    cluster.kubectl("delete", "inferenceservice", "own", "-n", namespace)
    until(lambda: not cluster.get("deployment", "own-predictor", namespace), "the Deployment goes with its owner")
    until(lambda: not cluster.get("service", "own-predictor", namespace), "the Service goes with its owner")


def test_a_model_gets_its_runtime_although_nobody_defaulted_it(
    cluster: Cluster, leader: Replica, namespace: str
) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=service("iris", namespace, sklearn={"storageUri": "pvc://models/iris"}))
    deployment = until(lambda: cluster.get("deployment", "iris-predictor", namespace), "a Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert "sklearnserver" in pod["containers"][0]["image"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "models"
    isvc = cluster.get("inferenceservice", "iris", namespace)
    assert isvc["spec"]["predictor"] == {"sklearn": {"storageUri": "pvc://models/iris"}}, "the spec is its author's"

    bad = service("bad", namespace, minReplicas=3, maxReplicas=1, containers=own_server())
    cluster.kubectl("apply", "-f", "-", stdin=bad)
    until(lambda: "maxReplicas" in cluster.kubectl("get", "events", "-n", namespace), "an Event names the field")
    assert not cluster.get("deployment", "bad-predictor", namespace)


FORBIDDEN = (
    ("list", "secrets", "default"),
    ("create", "secrets", "default"),
    ("create", "pods", "default"),
    ("delete", "pods", "default"),
    ("create", "pods/exec", "default"),
    ("create", "serviceaccounts/token", NAMESPACE),
    ("update", "inferenceservices", "default"),
    ("delete", "inferenceservices", "default"),
    ("patch", "namespaces", ""),
    ("create", "clusterrolebindings", ""),
    ("patch", "customresourcedefinitions", ""),
    ("get", "leases", "kube-system"),
    ("delete", "leases", NAMESPACE),
)


def test_the_account_may_do_no_more_than_it_needs(cluster: Cluster, leader: Replica) -> None:
    for verb, resource, namespace in FORBIDDEN:
        where = ("-n", namespace) if namespace else ()
        asked = cluster.kubectl("auth", "can-i", verb, resource, *where, account=True, check=False)
        assert "no" in asked.split() and "yes" not in asked.split(), f"{verb} {resource}: {asked}"
    attacks = (
        ("get", "secrets", "-A"),
        ("create", "secret", "generic", "x", "-n", "default"),
        ("delete", "namespace", "default"),
        ("create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", f"--user={ACCOUNT}"),
        ("create", "token", "default", "-n", "default"),
        ("run", "x", "--image=python:3.11", "-n", "default"),
    )
    for attack in attacks:
        assert "forbidden" in cluster.kubectl(*attack, account=True, check=False), attack
    assert f'User "{ACCOUNT}" cannot' not in leader.log.read_text(), "and it needs no more than it has"


@pytest.mark.skipif(bool(REAL), reason="the cluster is not ours to change")
def test_a_kind_that_the_cluster_lacks_is_said_and_used_when_it_comes(
    cluster: Cluster, leader: Replica, namespace: str
) -> None:
    until(lambda: "HTTPRoute: not served" in leader.log.read_text(), "the log says what is off")
    cluster.kubectl("apply", "-f", "-", stdin=service("routed", namespace, containers=own_server()))
    until(lambda: cluster.get("deployment", "routed-predictor", namespace), "a Deployment without routes")
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}
    names = {"plural": "httproutes", "singular": "httproute", "kind": "HTTPRoute", "listKind": "HTTPRouteList"}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "httproutes.gateway.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": "gateway.networking.k8s.io",
            "names": names,
            "scope": "Namespaced",
            "versions": [version],
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=crd)
    until(lambda: cluster.kubectl("get", "httproutes", "-n", namespace, "-o", "name", check=False), "routes")


def test_install_keeps_types_of_others_and_prints_what_it_would_do(cluster: Cluster) -> None:
    name = "crd/servingruntimes.serving.kserve.io"
    cluster.kubectl("label", name, "app.kubernetes.io/managed-by-")
    again = cluster.shallop("install", "--kubeconfig", cluster.kubeconfig, "--replicas", "0")
    assert "servingruntimes.serving.kserve.io kept" in again
    cluster.kubectl("label", name, "app.kubernetes.io/managed-by=shallop")
    text = cluster.shallop("install", "--dry-run", "-o", "yaml")
    printed = list(yaml.safe_load_all(text))
    assert {"Namespace", "Deployment", "ClusterRole", "ServiceAccount", "Service"} <= {obj["kind"] for obj in printed}
    done = subprocess.run(
        ["kubectl", "--kubeconfig", cluster.kubeconfig, "apply", "--dry-run=server", "-f", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_of_two_replicas_one_acts_and_the_other_takes_over(cluster: Cluster, namespace: str) -> None:
    for other in cluster.replicas:
        other.end()
    first = Replica(cluster, lease_s=8)
    until(lambda: first.leads(cluster), "the first leads")
    second = Replica(cluster, lease_s=8)
    before = cluster.get("lease", "shallop-controllers", NAMESPACE)["spec"]["leaseTransitions"]
    first.process.send_signal(signal.SIGSTOP)
    until(lambda: second.leads(cluster), "the second takes the Lease of one that is silent")
    cluster.kubectl("apply", "-f", "-", stdin=service("second", namespace, containers=own_server()))
    until(lambda: cluster.get("deployment", "second-predictor", namespace), "the second acts")

    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(60) == 1, "the first sees that its time is over, and ends"
    assert "another replica may lead" in first.log.read_text()
    assert second.leads(cluster)
    third = Replica(cluster, lease_s=8)
    second.process.kill()
    until(lambda: third.leads(cluster), "the third takes the Lease of one that is dead")
    cluster.kubectl("apply", "-f", "-", stdin=service("third", namespace, containers=own_server()))
    until(lambda: cluster.get("deployment", "third-predictor", namespace), "the third acts")
    assert cluster.get("lease", "shallop-controllers", NAMESPACE)["spec"]["leaseTransitions"] == before + 2
    third.process.terminate()
    assert third.process.wait(60) == 0
    assert cluster.holder() == "", "given back, so that the next one need not wait"


@pytest.mark.skipif(bool(REAL), reason="the cluster is not ours to kill")
def test_controllers_survive_the_end_of_the_api_server(cluster: Cluster, namespace: str) -> None:
    for other in cluster.replicas:
        other.end()
    replica = Replica(cluster)
    until(lambda: replica.leads(cluster), "it leads")
    cluster.kubectl("apply", "-f", "-", stdin=service("before", namespace, containers=own_server()))
    until(lambda: cluster.get("deployment", "before-predictor", namespace), "it acts")
    cluster.kill()
    cluster.up()
    cluster.kubectl("apply", "-f", "-", stdin=service("after", namespace, containers=own_server()))

    def acts() -> bool:
        if cluster.replicas[-1].process.poll() is not None:
            Replica(cluster)  # the server was away for longer than the Lease: the old one ended, as it should
        return bool(cluster.get("deployment", "after-predictor", namespace))

    until(acts, "it acts again")
