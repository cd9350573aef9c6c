"""The real kubectl against the API server over TLS; no node and no scheduler, so Pods stay pending."""

import asyncio
import base64
import json
import os
import select
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from shallop.controller import Manager
from shallop.embedded import workloads
from shallop.embedded.apiserver import ApiServer, ensure_tls, write_kubeconfig
from shallop.embedded.workloads.garbage import GarbageCollector
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.webserver import Server, bind

Kubectl = Callable[..., str]


class Output:
    """What a running kubectl prints, line by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 60)
        assert ready, "kubectl printed nothing"
        return self._process.stdout.readline().decode()


Streamed = AbstractContextManager[Output]

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.harbour.example.com}
spec:
  group: harbour.example.com
  scope: Namespaced
  names: {plural: boats, kind: Boat, shortNames: [bo], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.sails, statusReplicasPath: .status.sails}}
    additionalPrinterColumns:
    - {name: Sails, type: integer, jsonPath: .spec.sails}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [name]
            properties:
              name: {type: string, description: What is painted on the stern.}
              sails: {type: integer, minimum: 0, default: 1}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""
BOAT = """
apiVersion: harbour.example.com/v1
kind: Boat
metadata: {name: ada}
spec: {name: Ada}
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: main, image: "example.com/app:1"}]}
"""


def _serve(home: Path, ready: threading.Event, stop: threading.Event) -> None:
    async def run() -> None:
        tls = ensure_tls(home / "tls")
        server = ApiServer(home / "objects.db", admin_token="secret")
        await server.start()
        sock = bind("127.0.0.1", 0, "api_port")
        http = Server(server.asgi, sock, tls=(str(tls.certificate), str(tls.key)))
        await http.start()
        url = f"https://127.0.0.1:{sock.getsockname()[1]}"
        write_kubeconfig(home / "kubeconfig", server=url, ca_pem=tls.ca.read_bytes(), token="secret")
        database = Database(f"sqlite:///{home / 'rows.db'}")
        kinds = [kind for kind in workloads.PART.kinds if kind.kind != "Pod" and kind.schema is None]
        manager = Manager(server.client(), Settings(home=home), database, kinds)
        collector = GarbageCollector(server.client())
        running = [asyncio.create_task(manager.run()), asyncio.create_task(collector.run())]
        ready.set()
        await asyncio.to_thread(stop.wait)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.stop()
        await http.stop()
        database.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a kubectl that talks to a server of its own."""
    home = tmp_path_factory.mktemp("kubectl")
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=_serve, args=(home, ready, stop))
    thread.start()
    assert ready.wait(20)
    yield os.environ | {"KUBECONFIG": str(home / "kubeconfig"), "HOME": str(home), "EDITOR": "sed -i s/old/new/"}
    stop.set()
    thread.join(20)


@pytest.fixture(scope="module")
def k(kubectl: str, environment: dict[str, str]) -> Kubectl:
    """Run kubectl; returns what it printed, fails with its message unless ``fails`` is set."""

    def call(
        *arguments: str, stdin: str = "", fails: bool = False, both: bool = False, env: dict[str, str] | None = None
    ) -> str:
        done = subprocess.run(
            [kubectl, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=environment | (env or {}),
            timeout=60,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if fails or both else "")

    return call


@pytest.fixture
def streamed(kubectl: str, environment: dict[str, str]) -> Callable[..., Streamed]:
    """Run a kubectl that goes on until the end of the block."""

    @contextmanager
    def start(*arguments: str) -> Iterator[Output]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        with subprocess.Popen([kubectl, *arguments], env=environment, bufsize=0, **pipes) as process:
            try:
                yield Output(process)
            finally:
                process.kill()

    return start


def test_discovery_lists_resources_twice(k: Kubectl) -> None:
    # The second run comes from kubectl's cache, revalidated by ETag.
    for _ in range(2):
        listed = k("api-resources")
        assert "deployments" in listed
        assert "configmaps" in listed
    assert "apps/v1" in k("api-versions")


def test_config_maps_live_a_full_life(k: Kubectl) -> None:
    k("create", "cm", "c", "--from-literal=word=old")
    assert k("get", "cm", "c", "-o", "jsonpath={.data.word}") == "old"
    k("label", "cm", "c", "team=blue")
    k("annotate", "cm", "c", "note=yes")
    assert "c " in k("get", "cm", "-l", "team=blue", "--no-headers")
    k("patch", "cm", "c", "--type=merge", "-p", '{"data":{"more":"1"}}')
    k("patch", "cm", "c", "--type=json", "-p", '[{"op":"remove","path":"/data/more"}]')
    k("edit", "cm", "c")
    assert json.loads(k("get", "cm", "c", "-o", "json"))["data"] == {"word": "new"}
    assert "word" in k("describe", "cm", "c")
    k("delete", "cm", "c")
    assert "NotFound" in k("get", "cm", "c", fails=True)


def test_typed_commands_send_protobuf(k: Kubectl) -> None:
    k("create", "ns", "team")
    k("create", "secret", "generic", "s", "--from-literal=a=b", "-n", "team")
    k("create", "sa", "bot", "-n", "team")
    k("create", "deployment", "d", "--image=example.com/app:1", "-n", "team")
    k("create", "service", "clusterip", "svc", "--tcp=80:8080", "-n", "team")
    k("create", "job", "j", "--image=example.com/app:1", "-n", "team")
    k("create", "cronjob", "cj", "--image=example.com/app:1", "--schedule=0 0 * * *", "-n", "team")
    k("create", "role", "r", "--verb=get", "--resource=pods", "-n", "team")
    k("create", "rolebinding", "rb", "--role=r", "--serviceaccount=team:bot", "-n", "team")
    assert k("get", "secret", "s", "-n", "team", "-o", "jsonpath={.data.a}") == "Yg=="
    assert k("create", "token", "bot", "-n", "team").count(".") == 2
    assert k("auth", "can-i", "delete", "pods").strip() == "yes"
    assert "admin" in k("auth", "whoami")
    k("delete", "ns", "team", "--timeout=20s")


def test_rights_are_asked_for_and_kept(k: Kubectl) -> None:
    k("create", "ns", "rights")
    k("create", "sa", "bot", "-n", "rights")
    bot = ("--as", "system:serviceaccount:rights:bot", "-n", "rights")
    assert k("auth", "can-i", "list", "pods", *bot, fails=True).splitlines()[0] == "no"
    assert "Forbidden" in k("get", "pods", *bot, fails=True)
    k("create", "rolebinding", "view", "--clusterrole=view", "--serviceaccount=rights:bot", "-n", "rights")
    assert k("auth", "can-i", "list", "pods", *bot).strip() == "yes"
    assert k("auth", "can-i", "list", "secrets", *bot, fails=True).splitlines()[0] == "no"
    assert "selfsubjectreviews.authentication.k8s.io" in k("auth", "can-i", "--list", *bot)
    assert k("get", "pods", *bot) == "" or "No resources" in k("get", "pods", *bot)
    refused = k("create", "rolebinding", "up", "--clusterrole=admin", "--user=x", *bot, fails=True)
    assert 'cannot create resource "rolebindings"' in refused
    k("delete", "ns", "rights", "--timeout=20s")


def test_a_quota_is_kept_and_shown(k: Kubectl) -> None:
    k("create", "ns", "small")
    k("create", "quota", "q", "--hard=count/secrets=1,pods=0", "-n", "small")
    k("create", "secret", "generic", "a", "-n", "small")
    assert "exceeded quota: q" in k("create", "secret", "generic", "b", "-n", "small", fails=True)
    assert "exceeded quota: q" in k("run", "p", "--image=x", "-n", "small", fails=True)
    k("wait", "quota/q", "--for=jsonpath={.status.used.count/secrets}=1", "-n", "small", "--timeout=30s")
    assert "count/secrets: 1/1" in k("get", "quota", "-n", "small")
    k("delete", "ns", "small", "--timeout=20s")


def test_apply_creates_changes_and_says_when_nothing_changed(k: Kubectl) -> None:
    assert "created" in k("apply", "-f", "-", stdin=DEPLOYMENT)
    assert "unchanged" in k("apply", "-f", "-", stdin=DEPLOYMENT)
    changed = DEPLOYMENT.replace("app:1", "app:2")
    assert "app:2" in k("diff", "-f", "-", stdin=changed, fails=True)
    assert "configured" in k("apply", "-f", "-", stdin=changed)
    assert "serverside-applied" in k("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=changed)
    assert "unknown field" in k(
        "apply", "-f", "-", stdin=changed.replace("replicas: 2", "replicas: 2\n  bogus: 1"), fails=True
    )
    k("scale", "deployment", "web", "--replicas=3")
    k("wait", "deployment/web", "--for=jsonpath={.spec.replicas}=3", "--timeout=20s")
    assert "web" in k("describe", "deployment", "web")
    assert "0/3" in k("get", "deployments")
    pods = k("get", "pods", "-l", "app=web", "-o", "name").split()
    assert pods
    assert "Pending" in k("describe", pods[0])
    k("delete", "deployment", "web")


def test_a_users_custom_resource_is_like_any_other(k: Kubectl) -> None:
    k("apply", "-f", "-", stdin=CRD)
    k("wait", "--for=condition=Established", "crd/boats.harbour.example.com", "--timeout=20s")
    assert "created" in k("apply", "-f", "-", stdin=BOAT)
    assert "unchanged" in k("apply", "-f", "-", stdin=BOAT)
    assert k("get", "bo").split() == ["NAME", "SAILS", "ada", "1"]
    assert "painted on the stern" in k("explain", "boat.spec.name")
    assert "Required value" in k("apply", "-f", "-", stdin=BOAT.replace("{name: Ada}", "{sails: 1}"), fails=True)
    k("scale", "boat", "ada", "--replicas=4")
    k("patch", "boat", "ada", "--type=merge", "--subresource=status", "-p", '{"status":{"sails":4}}')
    assert k("get", "boat", "ada", "-o", "jsonpath={.spec.sails}{.status.sails}") == "44"
    assert "ada" in k("get", "all")
    k("delete", "crd", "boats.harbour.example.com", "--timeout=20s")
    assert "resource" in k("get", "boats", fails=True)


def test_explain_knows_built_in_types(k: Kubectl) -> None:
    assert "restartPolicy" in k("explain", "pod.spec")
    assert "KIND" in k("explain", "deployment.spec.strategy")


# ---- what is left of kubectl's commands


def test_a_watch_shows_what_happens(k: Kubectl, streamed: Callable[..., Streamed]) -> None:
    k("create", "ns", "seen")
    k("create", "cm", "first", "-n", "seen", "--from-literal=a=b")
    with streamed(
        "get", "cm", "-n", "seen", "-w", "--output-watch-events", "-l", "team=blue", "--no-headers"
    ) as output:
        k("label", "cm", "first", "team=blue", "-n", "seen")
        assert output.line().split()[:2] == ["ADDED", "first"]
        k("label", "cm", "first", "team=green", "--overwrite", "-n", "seen")
        assert output.line().split()[:2] == ["DELETED", "first"]
    k("delete", "ns", "seen", "--timeout=20s")


def test_a_proxy_speaks_for_its_user(k: Kubectl, streamed: Callable[..., Streamed]) -> None:
    with streamed("proxy", "--port=0") as output:
        url = f"http://{output.line().split()[-1]}"
        with urllib.request.urlopen(f"{url}/api/v1/namespaces/default", timeout=30) as answer:
            assert json.load(answer)["metadata"]["name"] == "default"


def test_tokens_are_for_an_audience_and_a_time(k: Kubectl) -> None:
    k("create", "sa", "caller")
    token = k("create", "token", "caller", "--audience=vault", "--duration=20m")
    part = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    assert (claims["aud"], claims["exp"] - claims["iat"]) == (["vault"], 1200)
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.strip()}}
    judged = json.loads(k("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))["status"]
    assert "authenticated" not in judged or not judged["authenticated"]
    review["spec"] |= {"audiences": ["vault"]}
    judged = json.loads(k("create", "-f", "-", "-o", "json", stdin=json.dumps(review)))["status"]
    assert (judged["authenticated"], judged["audiences"]) == (True, ["vault"])
    refused = k("get", "ns", "--token", token.strip(), fails=True)
    assert "Unauthorized" in refused or "logged in" in refused


def test_an_object_is_replaced_by_force(k: Kubectl) -> None:
    k("create", "cm", "swapped", "--from-literal=a=1")
    uid = k("get", "cm", "swapped", "-o", "jsonpath={.metadata.uid}")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "swapped"}, "data": {"b": "2"}}
    assert "replaced" in k("replace", "--force", "-f", "-", stdin=json.dumps(body))
    assert k("get", "cm", "swapped", "-o", "jsonpath={.metadata.uid}") != uid
    k("annotate", "cm", "swapped", "note=a")
    assert "--overwrite is false" in k("annotate", "cm", "swapped", "note=b", fails=True)
    k("annotate", "cm", "swapped", "note=b", "--overwrite")
    assert k("get", "cm", "swapped", "-o", "jsonpath={.metadata.annotations.note}") == "b"
    k("delete", "cm", "swapped")


def test_events_of_an_object_are_listed(k: Kubectl) -> None:
    k("create", "ns", "told")
    k("create", "deployment", "d", "--image=example.com/app:1", "-n", "told")
    k("wait", "deployment/d", "-n", "told", "--for=jsonpath={.status.replicas}=1", "--timeout=30s")
    deadline = time.monotonic() + 30
    while "ScalingReplicaSet" not in (listed := k("events", "--for", "deployment/d", "-n", "told")):
        assert time.monotonic() < deadline, listed
        time.sleep(0.1)
    assert "deployment/d" in listed.lower()
    found = k("get", "events", "-n", "told", "--field-selector=reason=ScalingReplicaSet", "-o", "json")
    assert json.loads(found)["items"][0]["source"]["component"] == "deployment-controller"
    k("delete", "ns", "told", "--timeout=20s")


def test_certificates_are_refused_clearly(k: Kubectl) -> None:
    unknown = "the server doesn't have a resource type"
    assert unknown in k("certificate", "approve", "x", fails=True)
    assert unknown in k("get", "csr", fails=True)


def test_what_an_apply_leaves_out_is_pruned(k: Kubectl, tmp_path: Path) -> None:
    k("create", "ns", "pruned")

    def maps(*names: str) -> str:
        metadata = [{"name": name, "namespace": "pruned", "labels": {"app": "p"}} for name in names]
        return "\n".join(json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": m}) for m in metadata)

    by_label = ("apply", "-n", "pruned", "--prune", "-l", "app=p", "--prune-allowlist=core/v1/ConfigMap", "-f", "-")
    k(*by_label, stdin=maps("a", "b"))
    assert "configmap/b pruned" in k(*by_label, stdin=maps("a"))
    assert "b" not in k("get", "cm", "-n", "pruned", "-l", "app=p", "-o", "name").replace("configmap/", "")
    by_set = ("apply", "-n", "pruned", "--prune", "--applyset=set", "-f", "-")
    k(*by_set, stdin=maps("c", "d"), env={"KUBECTL_APPLYSET": "true"})
    assert "configmap/d pruned" in k(*by_set, stdin=maps("c"), env={"KUBECTL_APPLYSET": "true"})
    k("delete", "ns", "pruned", "--timeout=20s")


def test_kustomizations_are_built_and_applied(k: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        "namePrefix: blue-\nresources: [deployment.yaml]\nconfigMapGenerator:\n- {name: conf, literals: [a=b]}\n"
    )
    (tmp_path / "deployment.yaml").write_text(DEPLOYMENT)
    assert "name: blue-web" in k("kustomize", str(tmp_path))
    assert "deployment.apps/blue-web created" in k("apply", "-k", str(tmp_path))
    assert "unchanged" in k("apply", "-k", str(tmp_path))
    assert k("get", "-k", str(tmp_path), "-o", "name").count("blue-") == 2
    k("delete", "-k", str(tmp_path))


def test_a_node_is_drained(k: Kubectl) -> None:
    k("create", "ns", "drained")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old"}}
    k("create", "-f", "-", stdin=json.dumps(node))
    k("run", "p", "--image=example.com/app:1", "-n", "drained", '--overrides={"spec":{"nodeName":"old"}}')
    assert "1 nodes" in k("taint", "nodes", "--all", "a=b:NoSchedule") or k("get", "node", "old", "-o", "yaml")
    refused = k("drain", "old", "--timeout=5s", fails=True)
    assert "cannot delete" in refused and "drained/p" in refused
    assert "SchedulingDisabled" in k("get", "node", "old")
    k("drain", "old", "--force", "--grace-period=0", "--timeout=30s")
    assert k("get", "pods", "-n", "drained", "-o", "name") == ""
    assert "uncordoned" in k("uncordon", "old")
    k("taint", "node", "old", "a:NoSchedule-")
    k("delete", "node", "old")
    k("delete", "ns", "drained", "--timeout=20s")


def test_generators_and_setters_write_what_they_say(k: Kubectl, tmp_path: Path) -> None:
    k("create", "ns", "made")
    here = ("-n", "made")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.bin").write_bytes(b"\xff\x00")
    k("create", "cm", "files", f"--from-file={tmp_path}", *here)
    found = json.loads(k("get", "cm", "files", "-o", "json", *here))
    assert (found["data"], found["binaryData"]) == ({"a.txt": "text"}, {"b.bin": "/wA="})
    k("create", "priorityclass", "high", "--value=1000", "--description=first")
    k("create", "clusterrolebinding", "seers", "--clusterrole=view", "--group=seers")
    k("create", "pdb", "p", "--selector=app=x", "--max-unavailable=1", *here)
    k("run", "p", "--image=example.com/app:1", "--port=80", "--env=A=1", "--labels=app=x", "--restart=Never", *here)
    k("expose", "pod", "p", "--port=80", "--name=p", *here)
    assert k("get", "svc", "p", "-o", "jsonpath={.spec.selector.app}", *here) == "x"
    k("set", "selector", "svc", "p", "app=y", *here)
    assert k("get", "svc", "p", "-o", "jsonpath={.spec.selector.app}", *here) == "y"
    k("create", "deployment", "d", "--image=example.com/app:1", *here)
    k("create", "sa", "bot", *here)
    k("set", "serviceaccount", "deployment", "d", "bot", *here)
    k("set", "env", "deployment/d", "--from=configmap/files", *here)
    spec = json.loads(k("get", "deployment", "d", "-o", "json", *here))["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "bot"
    assert spec["containers"][0]["env"][0]["valueFrom"]["configMapKeyRef"]["name"] == "files"
    k("create", "rolebinding", "rb", "--clusterrole=view", "--user=ada", *here)
    k("set", "subject", "rolebinding", "rb", "--user=bob", *here)
    assert k("get", "rolebinding", "rb", "-o", "jsonpath={.subjects[*].name}", *here) == "ada bob"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    metadata = {"name": "r", "namespace": "made"}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    assert "reconciled" in k("auth", "reconcile", "-f", "-", *here, stdin=json.dumps(role))
    k("delete", "deployment", "d", "--cascade=foreground", "--timeout=30s", *here)
    k("delete", "clusterrolebinding/seers", "priorityclass/high")
    k("delete", "ns", "made", "--timeout=20s")
    k("wait", "ns/made", "--for=delete", "--timeout=20s")


def test_the_cluster_and_the_configuration_are_shown(k: Kubectl) -> None:
    assert "is running at https://127.0.0.1" in k("cluster-info")
    assert "REDACTED" in k("config", "view")
    assert "shallop" in k("config", "get-contexts", "-o", "name")
    k("config", "set-context", "--current", "--namespace=kube-public")
    assert "No resources found in kube-public" in k("get", "pods", both=True)
    k("config", "set-context", "--current", "--namespace=default")
    assert json.loads(k("version", "-o", "json"))["serverVersion"]["major"] == "1"
    assert k("get", "--raw", "/readyz?verbose").endswith("check passed\n")
    assert "containers\t<[]Container> -required-" in k("explain", "pod.spec", "--recursive")
    assert "<integer>" in k("explain", "deployment.spec.replicas")
