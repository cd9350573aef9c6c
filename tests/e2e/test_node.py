"""What a node does with Pods, as kubectl sees it: hooks, refreshed files, tokens, limits, logs, endpoints."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 40.0
IMAGE = "python:3.11"


def until(check: Callable[[], Any], what: str) -> Any:
    """Return the first true result of ``check``."""
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


def pod(name: str, *command: str, spec: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A Pod of one container; fields are the container's."""
    container = {"name": "main", "image": IMAGE, "command": list(command), **fields}
    declared = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, **(spec or {})}
    body = {"containers": [container], **declared}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": body}


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


class Cluster:
    """kubectl in a namespace of the test's own."""

    def __init__(self, platform: Any, namespace: str) -> None:
        self.platform = platform
        self.namespace = namespace

    def __call__(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        return str(self.platform.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check))

    def apply(self, *objects: dict[str, Any]) -> None:
        self("apply", "-f", "-", stdin="\n".join(json.dumps(obj) for obj in objects))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return dict(json.loads(self("get", kind, name, "-o", "json")))

    def container(self, name: str) -> dict[str, Any]:
        statuses = self.get("pod", name).get("status", {}).get("containerStatuses") or [{"state": {}}]
        return dict(statuses[0])

    def phase(self, name: str, *phases: str) -> dict[str, Any]:
        status: dict[str, Any] = until(
            lambda: (s := self.get("pod", name).get("status", {})).get("phase") in phases and s, f"{name} is {phases}"
        )
        return status

    def output(self, *arguments: Any, **fields: Any) -> str:
        """Run a Pod to its end and return what it printed."""
        self.apply(pod(*arguments, **fields))
        self.phase(arguments[0], "Succeeded", "Failed")
        return self("logs", arguments[0])

    def events(self, name: str) -> list[tuple[str, str, str]]:
        items = json.loads(self("get", "events", "-o", "json"))["items"]
        return [(e["type"], e["reason"], e["message"]) for e in items if e["involvedObject"]["name"] == name]

    def event(self, name: str, reason: str) -> str:
        message: str = until(
            lambda: next((text for _, found, text in self.events(name) if found == reason), ""), f"{reason} of {name}"
        )
        return message


@pytest.fixture
def cluster(platform: Any, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    namespace = request.node.name.replace("_", "-").removeprefix("test-")[:50].strip("-")
    platform.kubectl("create", "namespace", namespace)
    yield Cluster(platform, namespace)
    platform.kubectl("delete", "namespace", namespace, "--wait=false", check=False)


# --- files and variables --------------------------------------------------------------------------------------------


def test_files_follow_their_config_map(cluster: Cluster) -> None:
    cluster.apply(config_map("words", word="old", gone="x"))
    script = "while ! grep -q new /mnt/words/word; do sleep 0.05; done; ls /mnt/words"
    volumes = [{"name": "words", "configMap": {"name": "words"}}]
    mounts = [{"name": "words", "mountPath": "/mnt/words"}]
    cluster.apply(pod("reader", "sh", "-c", script, spec={"volumes": volumes}, volumeMounts=mounts))
    until(lambda: "running" in cluster.container("reader")["state"], "it runs")
    cluster("replace", "-f", "-", stdin=json.dumps(config_map("words", word="new", added="y")))
    cluster.phase("reader", "Succeeded")
    assert cluster("logs", "reader").split() == ["added", "word"]


def test_what_was_missing_is_used_as_soon_as_it_appears(cluster: Cluster) -> None:
    env = [{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "word"}}}]
    volumes = [{"name": "key", "secret": {"secretName": "key"}}]
    mounts = [{"name": "key", "mountPath": "/data/key", "readOnly": True}]
    cluster.apply(
        pod("waits", "sh", "-c", "echo $WORD; cat /data/key/k", env=env, volumeMounts=mounts, spec={"volumes": volumes})
    )
    until(lambda: "CreateContainerConfigError" in str(cluster.container("waits")["state"]), "it says so")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"k": "secret"}}
    cluster.apply(secret)
    time.sleep(0.5)
    cluster.apply(config_map("later", word="hello"))
    started = time.monotonic()
    cluster.phase("waits", "Succeeded")
    assert time.monotonic() - started < 5, "it does not wait for the next attempt"
    assert cluster("logs", "waits").split() == ["hello", "secret"]


def test_a_pod_reaches_the_api_with_its_own_token(cluster: Cluster) -> None:
    program = """
import os, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
token, namespace = (open(folder + name).read() for name in ("token", "namespace"))
url = f"https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews"
body = b'{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}'
headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
request = urllib.request.Request(url, body, headers)
print(urllib.request.urlopen(request, context=ssl.create_default_context(cafile=folder + "ca.crt")).read().decode())
"""
    text = cluster.output("asks", "python3", "-c", program)
    assert f"system:serviceaccount:{cluster.namespace}:default" in text, text
    extra = json.loads(text)["status"]["userInfo"]["extra"]
    assert extra["authentication.kubernetes.io/pod-name"] == ["asks"], "the token ends with its Pod"


def test_a_pod_finds_nothing_of_the_one_before(cluster: Cluster) -> None:
    def look_and_leave(name: str) -> list[str]:
        script = "ls -AlR $HOME /tmp /var/tmp; cat /dev/termination-log; echo mine > $HOME/f; echo mine > /tmp/f; "
        script += "chmod 700 /tmp; mkdir -p /var/tmp/a/b; echo mine > /dev/termination-log"
        return cluster.output(name, "sh", "-c", script).split()

    first = look_and_leave("before")
    for number in range(3):
        words = look_and_leave(f"after-{number}")
        assert not {"f", "a", "mine"} & set(words), words
        assert len(words) == len(first)


def test_the_platform_and_its_secrets_are_out_of_sight(cluster: Cluster) -> None:
    home = cluster.platform.home
    text = cluster.output("nosy", "sh", "-c", f"ls -A {home}; cat {home}/token; env; ls -A /tmp")
    assert (home / "token").read_text() not in text
    assert "objects.db" not in text and "PYTEST" not in text


def test_no_host_path_leads_to_the_platform(cluster: Cluster) -> None:
    home = cluster.platform.home
    mounts = [{"name": "machine", "mountPath": "/machine"}]

    def mounting(path: Path) -> dict[str, Any]:
        return {"volumes": [{"name": "machine", "hostPath": {"path": str(path)}}]}

    look = f"ls /machine; ls -A /machine{home}; cat /machine{home}/token"
    text = cluster.output("roams", "sh", "-c", look, volumeMounts=mounts, spec=mounting(Path("/")))
    assert "etc" in text.split(), "the machine is there"
    assert (home / "token").read_text() not in text and "objects.db" not in text
    cluster.apply(pod("pries", "true", volumeMounts=mounts, spec=mounting(home / "tls")))
    until(lambda: "belongs to the platform" in str(cluster.container("pries")["state"]), "it is told why it waits")


# --- life -----------------------------------------------------------------------------------------------------------


def test_hooks_run_after_the_start_and_before_the_end(cluster: Cluster, tmp_path: Path) -> None:
    volumes = [{"name": "out", "hostPath": {"path": str(tmp_path)}}]
    mounts = [{"name": "out", "mountPath": "/out"}]
    lifecycle = {
        "postStart": {"exec": {"command": ["sh", "-c", "sleep 0.3; echo post >> /out/log"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo pre >> /out/log"]}},
    }
    cluster.apply(
        pod("hooked", "sleep", "1000", lifecycle=lifecycle, volumeMounts=mounts, spec={"volumes": volumes}),
        pod("broken", "sleep", "1000", lifecycle={"postStart": {"exec": {"command": ["false"]}}}),
    )
    cluster("wait", "--for=condition=Ready", "pod/hooked", "--timeout=30s")
    assert (tmp_path / "log").read_text() == "post\n", "not ready before its hook is done"
    cluster("delete", "pod", "hooked")
    assert (tmp_path / "log").read_text() == "post\npre\n"
    assert cluster.phase("broken", "Failed")["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
    assert "PostStartHook" in cluster.event("broken", "FailedPostStartHook")


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
def test_a_memory_limit_ends_what_takes_more(cluster: Cluster) -> None:
    limits = {"limits": {"memory": "64Mi"}}
    cluster.apply(
        pod("greedy", "python3", "-c", "x = bytearray(200 * 2**20)", resources=limits),
        pod("modest", "python3", "-c", "x = bytearray(10 * 2**20)", resources=limits),
    )
    status = cluster.phase("greedy", "Failed")
    if any(reason == "MemoryLimitIgnored" for _, reason, _ in cluster.events("greedy")):
        pytest.skip("this machine has no control groups for memory that we may make")
    ended = status["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    cluster.phase("modest", "Succeeded")


@pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
def test_a_cpu_limit_is_a_quota_of_the_kernel(cluster: Cluster) -> None:
    script = """
import glob
name = next(line.split("/shallop-")[1].strip() for line in open("/proc/self/cgroup") if "/shallop-" in line)
patterns = [f"/sys/fs/cgroup/cpu/shallop-{name}/cpu.cfs_[pq]*", f"/sys/fs/cgroup/shallop-{name}/cpu.max"]
files = [file for pattern in patterns for file in glob.glob(pattern)]
print(sorted(word for file in files for word in open(file).read().split()))
"""
    resources = {"limits": {"cpu": "250m", "memory": "256Mi"}}
    cluster.apply(pod("limited", "python3", "-c", script, resources=resources))
    cluster.phase("limited", "Succeeded", "Failed")
    if any(reason in ("CPULimitIgnored", "MemoryLimitIgnored") for _, reason, _ in cluster.events("limited")):
        pytest.skip("this machine has no control groups for CPU that we may make")
    assert cluster("logs", "limited").strip() == "['100000', '25000']"


def test_sidecars_serve_until_the_last_container_has_ended(cluster: Cluster, tmp_path: Path) -> None:
    sidecar = """
import signal, sys, time
def stop(*_):
    open("/out/log", "a").write("sidecar\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open("/out/ready", "w")
while True:
    time.sleep(0.1)
"""
    volumes = [{"name": "out", "hostPath": {"path": str(tmp_path), "type": "Directory"}}]
    mounts = [{"name": "out", "mountPath": "/out"}]
    init = [
        {
            "name": "helper",
            "image": IMAGE,
            "command": ["python3", "-c", sidecar],
            "restartPolicy": "Always",
            "volumeMounts": mounts,
            "startupProbe": {"exec": {"command": ["test", "-e", "/out/ready"]}, "periodSeconds": 1},
        }
    ]
    script = "test -e /out/ready && echo main >> /out/log"
    spec = {"volumes": volumes, "initContainers": init, "terminationGracePeriodSeconds": 30}
    cluster.apply(pod("together", "sh", "-c", script, volumeMounts=mounts, spec=spec))
    status = cluster.phase("together", "Succeeded", "Failed")
    assert (status["phase"], (tmp_path / "log").read_text()) == ("Succeeded", "main\nsidecar\n")
    ended = status["initContainerStatuses"][0]["state"]["terminated"]
    assert ended["exitCode"] == 0, "it was asked to end, not killed"


def test_a_pod_whose_volume_grows_too_large_is_evicted(cluster: Cluster) -> None:
    volumes = [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}]
    mounts = [{"name": "scratch", "mountPath": "/scratch", "subPathExpr": "of-$(WHO)"}]
    cluster.apply(
        pod(
            "large",
            "sh",
            "-c",
            "head -c 3000000 /dev/zero > /scratch/file; exec sleep 1000",
            spec={"volumes": volumes},
            env=[{"name": "WHO", "value": "me"}],
            volumeMounts=mounts,
            resources={"requests": {"ephemeral-storage": "10Mi"}},
        )
    )
    status = cluster.phase("large", "Failed")
    assert status["reason"] == "Evicted" and 'exceeds the limit "1Mi"' in status["message"], status


def test_fields_without_effect_are_named(cluster: Cluster) -> None:
    security = {"privileged": True, "runAsUser": 1234}
    cluster.apply(pod("special", "true", securityContext=security, spec={"hostPID": True}))
    cluster.phase("special", "Succeeded")
    until(lambda: len([1 for _, reason, _ in cluster.events("special") if reason == "FieldIgnored"]) == 3, "3 events")
    texts = " ".join(text for _, _, text in cluster.events("special"))
    for field in ("spec.hostPID", "spec.containers[main].securityContext.privileged", "securityContext.runAsUser"):
        assert field in texts


def test_unknown_images_are_tried_again_and_explained(cluster: Cluster) -> None:
    cluster.apply(pod("stranger", "true", image="acme/train:7"))
    until(lambda: "ImagePull" in str(cluster.container("stranger")["state"]), "it says so")
    assert "acme/train:7" in cluster.container("stranger")["state"]["waiting"]["message"]
    until(lambda: "ImagePullBackOff" in cluster("get", "pod", "stranger"), "the STATUS column says it too")


def test_what_cannot_be_installed_is_said_in_the_words_of_the_resolver(cluster: Cluster) -> None:
    unmet = pod("unmet", "true")
    unmet["metadata"]["annotations"] = {"environment.shallop.dev/requirements": "six==99.9"}
    cluster.apply(unmet)
    until(lambda: "ImagePull" in str(cluster.container("unmet")["state"]), "it waits")
    words = "six==99.9 and you require six==99.9"
    assert words in cluster.container("unmet")["state"]["waiting"]["message"]
    until(lambda: any(words in text for _, reason, text in cluster.events("unmet") if reason == "Failed"), "an Event")


def test_readiness_decides_about_endpoints(cluster: Cluster, tmp_path: Path) -> None:
    volumes = [{"name": "gate", "hostPath": {"path": str(tmp_path)}}]
    mounts = [{"name": "gate", "mountPath": "/gate"}]
    gate = {"exec": {"command": ["test", "-e", "/gate/open"]}, "periodSeconds": 1, "failureThreshold": 1}
    server = (
        "import http.server as h; h.ThreadingHTTPServer(('0.0.0.0', 8080), h.SimpleHTTPRequestHandler).serve_forever()"
    )
    cluster.apply(
        pod("web", "python3", "-c", server, readinessProbe=gate, volumeMounts=mounts, spec={"volumes": volumes}),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    until(lambda: "running" in cluster.container("web")["state"], "it runs")

    def ready_addresses() -> list[str]:
        items = json.loads(cluster("get", "endpointslices", "-o", "json"))["items"]
        found = [e for item in items for e in item.get("endpoints") or () if e["conditions"].get("ready")]
        return [address for endpoint in found for address in endpoint["addresses"]]

    assert not ready_addresses()
    (tmp_path / "open").touch()
    until(ready_addresses, "an endpoint")
    fetch = "import urllib.request as u; print(u.urlopen('http://web.{}.svc.cluster.local/', timeout=5).status)"
    assert cluster.output("client", "python3", "-c", fetch.format(cluster.namespace)) == "200\n"
    (tmp_path / "open").unlink()
    until(lambda: not ready_addresses(), "no endpoint")


# --- logs -----------------------------------------------------------------------------------------------------------


def test_logs_have_the_flags_of_kubectl(cluster: Cluster) -> None:
    cluster.apply(
        pod("talks", "sh", "-c", "for i in 1 2 3; do echo line $i; done; exit 1", spec={"restartPolicy": "OnFailure"})
    )
    until(lambda: cluster.container("talks").get("restartCount", 0) >= 1, "it is restarted")
    assert cluster("logs", "talks", "--previous") == "line 1\nline 2\nline 3\n"
    assert cluster("logs", "talks", "--previous", "--tail=1") == "line 3\n"
    stamped = cluster("logs", "talks", "--previous", "--timestamps").splitlines()
    assert len(stamped) == 3 and all(line.split(" ")[0].endswith("Z") for line in stamped)
    assert cluster("logs", "talks", "--since=1h").startswith("line 1")
    uid = cluster.get("pod", "talks")["metadata"]["uid"]
    cluster("delete", "pod", "talks")
    log = cluster.platform.home / "logs" / cluster.namespace / f"talks_{uid}" / "main" / "0.log"
    assert "line 3" in log.read_text(), "logs outlive their Pod"


# --- many -----------------------------------------------------------------------------------------------------------


def test_logs_and_files_stay_when_the_pod_goes(cluster: Cluster) -> None:
    claim: dict[str, Any] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"}}
    claim["spec"] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    volumes = [{"name": "out", "persistentVolumeClaim": {"claimName": "kept"}}]
    mounts = [{"name": "out", "mountPath": "/out"}]
    writer = pod(
        "writer", "sh", "-c", "echo said; echo made > /out/file", spec={"volumes": volumes}, volumeMounts=mounts
    )
    cluster.apply(claim, writer)
    cluster.phase("writer", "Succeeded")
    uid = cluster.get("pod", "writer")["metadata"]["uid"]
    cluster("delete", "pod", "writer", "--timeout=60s")
    log = cluster.platform.home / "logs" / cluster.namespace / f"writer_{uid}" / "main" / "0.log"
    assert log.read_text().endswith(" said\n")
    reader = pod("reader", "cat", "/out/file", spec={"volumes": volumes}, volumeMounts=mounts)
    cluster.apply(reader)
    cluster.phase("reader", "Succeeded")
    assert cluster("logs", "reader") == "made\n"


def test_fifty_pods_at_once_leave_nothing_behind(cluster: Cluster) -> None:
    descriptors = Path(f"/proc/{cluster.platform.pid}/fd")

    def run(prefix: str, count: int) -> None:
        cluster.apply(*(pod(f"{prefix}-{number}", "true") for number in range(count)))
        until(lambda: cluster("get", "pods", "--no-headers").count("Completed") == count, f"{count} have ended")
        cluster("delete", "pods", "--all", "--wait=true")

    run("first", 10)
    before = len(list(descriptors.iterdir()))
    run("many", 50)
    with contextlib.suppress(AssertionError):
        until(lambda: len(list(descriptors.iterdir())) <= before + 5, "descriptors are closed")
    assert len(list(descriptors.iterdir())) <= before + 5
    assert not list(Path("/sys/fs/cgroup").glob(f"**/shallop-*{cluster.namespace}*"))
