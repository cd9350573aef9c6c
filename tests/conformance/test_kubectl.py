"""The real kubectl against the API server over TLS; no node and no scheduler, so Pods stay pending."""

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shallop.controller import Manager
from shallop.embedded import workloads
from shallop.embedded.apiserver import ApiServer, ensure_tls, write_kubeconfig
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.webserver import Server, bind

Kubectl = Callable[..., str]

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
        running = asyncio.create_task(manager.run())
        ready.set()
        await asyncio.to_thread(stop.wait)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.stop()
        await http.stop()
        database.close()

    asyncio.run(run())


@pytest.fixture(scope="module")
def k(kubectl: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """Run kubectl; returns what it printed, fails with its message unless ``fails`` is set."""
    home = tmp_path_factory.mktemp("kubectl")
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=_serve, args=(home, ready, stop))
    thread.start()
    assert ready.wait(20)
    environment = os.environ | {
        "KUBECONFIG": str(home / "kubeconfig"),
        "HOME": str(home),
        "EDITOR": "sed -i s/old/new/",
    }

    def call(*arguments: str, stdin: str = "", fails: bool = False) -> str:
        done = subprocess.run(
            [kubectl, *arguments], input=stdin, capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        assert (done.returncode != 0) == fails, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout + (done.stderr if fails else "")

    yield call
    stop.set()
    thread.join(20)


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
