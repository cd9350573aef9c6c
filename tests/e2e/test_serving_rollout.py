"""Revisions, canaries, scale to zero and rolling back, through the gateway, with requests that never stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 90.0
ISVC = "serving.kserve.io/v1beta1"
# A predictor that says which one it is, which process, and how many requests it had at once at most.
PREDICTOR = """
import http.server, json, os, signal, threading, time
inside, most, lock = 0, 0, threading.Lock()
class Predictor(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        global inside, most
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(body.get("sleep", 0))
        with lock:
            inside -= 1
        answer = json.dumps({"predictions": [os.environ["VERSION"]], "most": most, "pod": os.environ["POD"]})
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())
    def log_message(self, *args): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False
server = Server(("0.0.0.0", 8080), Predictor)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=lambda: (time.sleep(0.5), server.shutdown())).start())
server.serve_forever()
"""

pytestmark = pytest.mark.timeout(240)


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


class Service:
    """One InferenceService of a namespace, written as a user writes it."""

    def __init__(self, platform: Any, namespace: str, name: str, **annotations: str) -> None:
        self.platform, self.namespace, self.name, self.annotations = platform, namespace, name, annotations
        self.url = f"{platform.gateway}/serving/{namespace}/{name}/v1/models/{name}:predict"

    def container(self, version: str, command: str = PREDICTOR) -> dict[str, Any]:
        pod = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
        env = [pod, {"name": "VERSION", "value": version}, {"name": "OWNER", "value": self.namespace}]
        command_ = ["python3", "-c", command]
        return {"name": "kserve-container", "image": "python:3.11", "command": command_, "env": env}

    def apply(
        self, version: str, *, command: str = PREDICTOR, canary: list[Any] | None = None, **predictor: Any
    ) -> None:
        metadata = {"name": self.name, "annotations": self.annotations}
        spec: dict[str, Any] = {"predictor": {"containers": [self.container(version, command)], **predictor}}
        spec |= {"canary": canary} if canary is not None else {}
        manifest = {"apiVersion": ISVC, "kind": "InferenceService", "metadata": metadata, "spec": spec}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return str(self.platform.kubectl("-n", self.namespace, *arguments, **more))

    def get(self, path: str, what: str = "") -> str:
        return self.kubectl("get", *(what or f"isvc/{self.name}").split(","), "-o", f"jsonpath={{{path}}}")

    def wait_ready(self) -> None:
        """Wait until the whole of what was last applied is ready."""

        def ready() -> bool:
            obj = json.loads(self.kubectl("get", f"isvc/{self.name}", "-o", "json"))
            status = obj.get("status") or {}
            conditions = {item["type"]: item["status"] for item in status.get("conditions") or []}
            return status.get("observedGeneration") == obj["metadata"]["generation"] and conditions["Ready"] == "True"

        until(ready, f"{self.name} is ready")

    def predictor(self, field: str) -> str:
        return self.get(f".status.components.predictor.{field}")

    def ask(self, body: Any = None, **headers: str) -> dict[str, Any]:
        request = urllib.request.Request(self.url, json.dumps(body or {}).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def answers(self) -> str:
        """Return the version that answers, empty while there is no way to any."""
        try:
            return str(self.ask()["predictions"][0])
        except urllib.error.HTTPError as error:
            error.close()
            return ""

    def versions(self, count: int) -> Counter[str]:
        return Counter(self.ask()["predictions"][0] for _ in range(count))


@contextmanager
def traffic(service: Service) -> Iterator[Counter[str]]:
    """Send requests all the time; fails when one of them did."""
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            try:
                seen[service.ask({"sleep": 0.05})["predictions"][0]] += 1
            except (OSError, urllib.error.HTTPError) as error:
                seen[f"failed: {error!r} {error.read() if isinstance(error, urllib.error.HTTPError) else ''}"] += 1

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not [key for key in seen if key.startswith("failed")], seen


@pytest.fixture
def namespace(platform: Any, kubectl: str, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"rollout-{abs(hash(request.node.name)) % 10**8}"
    platform.kubectl("create", "namespace", name)
    yield name
    platform.kubectl("delete", "namespace", name, "--wait=false")


def binomial_bounds(count: int, share: float) -> tuple[float, float]:
    """Return what a share of ``count`` draws lies between in 99 cases of 100."""
    half = 2.576 * (count * share * (1 - share)) ** 0.5
    return count * share - half, count * share + half


def ask_for_shares(service: Service, seen: Counter[str]) -> Counter[str]:
    """
    Return which versions answered some hundred requests, those of the traffic beside them included.

    The gateway deals out all requests of a route evenly, whoever sends them: of any run of them a version gets its
    share up to 4 (``test_routes``), and at either end 3 may be under way. Both is less than the bounds of 200 draws.
    """
    before = Counter(seen)
    return service.versions(200) + (Counter(seen) - before)


def test_a_canary_is_ramped_up_promoted_and_rolled_back_without_a_failed_request(platform: Any, namespace: str) -> None:
    service = Service(platform, namespace, "ramp", **{"serving.kserve.io/enable-tag-routing": "true"})
    service.apply("one")
    service.wait_ready()
    assert service.versions(20) == {"one": 20}
    with traffic(service) as seen:
        service.apply("two", canaryTrafficPercent=20)
        until(lambda: service.predictor("latestReadyRevision") == "ramp-predictor-00002", "the canary is ready")
        until(lambda: service.predictor("traffic[0].revisionName") == "ramp-predictor-00002", "the canary has traffic")
        until(lambda: "two" in service.versions(10), "the gateway follows")
        counts = ask_for_shares(service, seen)
        low, high = binomial_bounds(counts.total(), 0.2)
        assert low <= counts["two"] <= high, counts
        assert service.predictor("latestRolledoutRevision") == "ramp-predictor-00001"
        shown = json.loads(service.predictor("traffic"))
        assert [(item["revisionName"], item["percent"], item["latestRevision"]) for item in shown] == [
            ("ramp-predictor-00002", 20, True),
            ("ramp-predictor-00001", 80, False),
        ]
        columns = service.kubectl("get", "isvc", "ramp", "--no-headers").split()
        assert columns[2:7] == ["True", "80", "20", "ramp-predictor-00001", "ramp-predictor-00002"]
        for tag, version in (("latest", "two"), ("prev", "one")):
            host = f"{tag}-ramp-predictor.{namespace}.example.com"
            request = urllib.request.Request(f"{platform.gateway}/v1/models/ramp:predict", b"{}", {"Host": host})
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["predictions"] == [version]
        sticky = {service.ask(**{"X-Request-Id": "the same"})["predictions"][0] for _ in range(20)}
        assert len(sticky) == 1
        service.apply("two")
        until(lambda: service.predictor("latestRolledoutRevision") == "ramp-predictor-00002", "promoted")
        until(lambda: service.versions(20) == {"two": 20}, "all traffic is the new one's")
        service.apply("two", canaryTrafficPercent=0)
        until(lambda: service.versions(20) == {"one": 20}, "rolled back")
    service.wait_ready()


def test_a_canary_that_cannot_start_gets_no_traffic_and_says_why(platform: Any, namespace: str) -> None:
    service = Service(platform, namespace, "broken")
    service.apply("one")
    service.wait_ready()
    service.apply("two", command="raise SystemExit('no odd model')", canaryTrafficPercent=50)
    message = ".status.conditions[?(@.type=='Ready')].message"
    until(lambda: "no odd model" in service.get(message), "the reason is told")
    assert service.versions(30) == {"one": 30}
    assert service.predictor("latestReadyRevision") == "broken-predictor-00001"


def test_a_service_scales_to_zero_and_every_request_that_wakes_it_is_answered(platform: Any, namespace: str) -> None:
    service = Service(platform, namespace, "sleepy", **{"autoscaling.knative.dev/window": "6s"})
    service.apply("one", minReplicas=0, containerConcurrency=2, maxReplicas=1)
    service.wait_ready()
    deployment = "deploy/sleepy-predictor-00001-deployment"
    until(lambda: service.get(".spec.replicas", deployment) == "0", "scaled to zero")
    until(lambda: not service.kubectl("get", "pods", "-o", "name").strip(), "no Pod is left")
    until(lambda: service.get(".status.modelStatus.states.targetModelState") == "Pending", "the status follows")
    assert service.get(".status.modelStatus.copies.totalCopies") == "0"
    columns = service.kubectl("get", "isvc", "sleepy", "--no-headers").split()
    assert columns[2:5] == ["True", "100", "sleepy-predictor-00001"]
    answers: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(service.ask({"sleep": 0.05}))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert {answer["predictions"][0] for answer in answers} == {"one"}
    assert max(answer["most"] for answer in answers) == 2, "containerConcurrency is a hard limit"


def test_a_service_is_scaled_by_the_requests_of_a_second(platform: Any, namespace: str) -> None:
    service = Service(platform, namespace, "busy", **{"autoscaling.knative.dev/window": "6s"})
    service.apply("one", maxReplicas=3, scaleMetric="rps", scaleTarget=5)
    service.wait_ready()
    with traffic(service):
        # Some 50 requests a second of three clients: by the requests at once, which count otherwise, one Pod would do.
        ready = "deploy/busy-predictor-00001-deployment"
        until(lambda: service.get(".status.readyReplicas", ready) == "3", "as many Pods as may be")


@pytest.mark.parametrize("mode", ["Knative", "Standard"])
def test_a_stopped_service_answers_nobody_and_lets_nobody_wait(platform: Any, namespace: str, mode: str) -> None:
    service = Service(platform, namespace, "halted", **{"serving.kserve.io/deploymentMode": mode})
    service.apply("one")
    service.wait_ready()
    seen: Counter[Any] = Counter()
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            try:
                seen[service.ask({"sleep": 0.05})["predictions"][0]] += 1
            except urllib.error.HTTPError as error:
                seen[error.code, "error" in json.load(error)] += 1
            except OSError as error:
                seen[repr(error)] += 1

    def stopped(value: str) -> None:
        service.kubectl("annotate", "--overwrite", "isvc/halted", f"serving.kserve.io/stop={value}")

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: seen["one"] > 20, "requests are answered")
        stopped("true")
        service.kubectl("wait", "isvc/halted", "--for=condition=Stopped", "--timeout=60s")
        until(lambda: not service.kubectl("get", "pods", "-o", "name").strip(), "no Pod is left")
        assert service.get(".status.conditions[?(@.type=='Ready')].reason") == "Stopped"
        before = seen[404, True]
        until(lambda: seen[404, True] > before + 20, "requests are told that there is no such service")
        stopped("false")
        service.wait_ready()
        before = seen["one"]
        until(lambda: seen["one"] > before + 20, "requests are answered again")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(seen) <= {"one", (404, True), (503, True)}, seen


def test_a_killed_replica_costs_nobody_an_error(platform: Any, namespace: str) -> None:
    service = Service(platform, namespace, "killed")
    service.apply("one", minReplicas=2)
    service.wait_ready()
    until(lambda: len({service.ask()["pod"] for _ in range(10)}) == 2, "two Pods answer")
    with traffic(service) as seen:
        for pid in processes(namespace)[:1]:
            os.kill(pid, signal.SIGKILL)
        before = seen["one"]
        until(lambda: seen["one"] > before + 50, "traffic goes on")


def processes(namespace: str) -> list[int]:
    """Return the process ids of the predictors of a namespace, by the URL of their service in the environment."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    environ = file.read()
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    command = file.read()
            except OSError:
                continue
            if b"request_queue_size" in command and f"OWNER={namespace}".encode() in environ:
                found.append(int(entry))
    return found


def test_two_namespaces_may_use_one_name(platform: Any, namespace: str) -> None:
    other = f"{namespace}-b"
    platform.kubectl("create", "namespace", other)
    try:
        services = [Service(platform, namespace, "twin"), Service(platform, other, "twin")]
        for service in services:
            service.apply(service.namespace)
        for service in services:
            service.wait_ready()
        for service in services:
            assert service.versions(5) == {service.namespace: 5}
            host = f"twin.{service.namespace}.example.com"
            request = urllib.request.Request(f"{platform.gateway}/v1/models/twin:predict", b"{}", {"Host": host})
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["predictions"] == [service.namespace]
    finally:
        platform.kubectl("delete", "namespace", other, "--wait=false")


def test_a_named_canary_of_standard_mode_is_promoted_without_a_restart(platform: Any, namespace: str) -> None:
    mode = {"serving.kserve.io/deploymentMode": "Standard"}
    service = Service(platform, namespace, "named", **mode)
    service.apply("one")
    service.wait_ready()
    green_pods = "pods,-lapp=isvc.named-green-predictor"
    green = {"name": "green", "containers": [service.container("two")]}
    with traffic(service) as seen:
        service.apply("one", canary=[{"predictor": green, "trafficPercent": 0}])
        until(lambda: service.get(".status.canaryStatuses[0].ready") == "true", "the dark launch is ready")
        dark = Service(platform, namespace, "named-green-predictor")
        until(lambda: dark.answers() == "two", "the canary answers who asks it by itself")
        assert service.versions(20) == {"one": 20}
        service.apply("one", canary=[{"predictor": green, "trafficPercent": 30}])
        until(lambda: service.get(".status.canaryStatuses[0].ready") == "true", "the canary is ready")
        until(lambda: "two" in service.versions(10), "the gateway follows")
        counts = ask_for_shares(service, seen)
        low, high = binomial_bounds(counts.total(), 0.3)
        assert low <= counts["two"] <= high, counts
        pods = service.get(".items[*].metadata.uid", what=green_pods)
        assert pods
        service.apply("two", canary=[], name="green")
        until(lambda: service.versions(20) == {"two": 20}, "promoted")
    assert service.get(".items[*].metadata.uid", what=green_pods) == pods
    until(lambda: "named-predictor" not in service.kubectl("get", "deploy", "-o", "name"), "the old one is gone")


# The head gathers parts of a sum from its workers, who register with it; it answers when all of them are there.
HEAD = """
import http.server, json, os, socket, threading
workers, count = [], int(os.environ["RAY_NODE_COUNT"]) - 1
door = socket.create_server(("0.0.0.0", 6379))
while len(workers) < count:
    link = door.accept()[0]
    workers.append(link.makefile("rw"))
class Predictor(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["content-length"])))["instances"]
        parts = []
        for worker in workers:
            print(json.dumps(rows), file=worker, flush=True)
            parts.append(json.loads(worker.readline()))
        sums = [sum(part["sums"][row] for part in parts) for row in range(len(rows))]
        said = {"predictions": sums, "workers": sorted(part["pod"] for part in parts), "size": os.environ["MODEL_DIR"]}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.HTTPServer(("0.0.0.0", 8080), Predictor).serve_forever()
"""
WORKER = """
import json, os, socket, time
head = f'{os.environ["HEAD_SVC"]}.{os.environ["POD_NAMESPACE"]}.svc.cluster.local'
while True:
    try:
        link = socket.create_connection((head, 6379)).makefile("rw")
        break
    except OSError:
        time.sleep(0.05)
share = json.load(open("/mnt/models/share.json")) / (int(os.environ["RAY_NODE_COUNT"]) - 1)
for line in link:
    sums = [share * sum(row) for row in json.loads(line)]
    print(json.dumps({"sums": sums, "pod": os.environ["POD"]}), file=link, flush=True)
"""


def test_a_model_is_spread_over_a_head_and_workers(platform: Any, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "share.json").write_text("10")

    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    def container(name: str, program: str) -> dict[str, Any]:
        env = [field("POD", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")]
        return {"name": name, "image": "python:3.11", "command": ["python3", "-c", program], "env": env}

    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "spread"},
        "spec": {
            "supportedModelFormats": [{"name": "sums", "version": "1", "autoSelect": True}],
            "containers": [container("kserve-container", HEAD)],
            "workerSpec": {"containers": [container("worker-container", WORKER)]},
        },
    }
    notes = {"serving.kserve.io/deploymentMode": "Standard", "serving.kserve.io/autoscalerClass": "none"}
    service = Service(platform, namespace, "spread", **notes)

    def apply(size: int) -> None:
        model = {"modelFormat": {"name": "sums"}, "storageUri": f"file://{tmp_path}"}
        predictor = {"model": model, "workerSpec": {"pipelineParallelSize": size}}
        metadata = {"name": "spread", "annotations": notes}
        manifest = {"apiVersion": ISVC, "kind": "InferenceService", "metadata": metadata}
        service.kubectl("apply", "-f", "-", stdin=json.dumps(manifest | {"spec": {"predictor": predictor}}))

    service.kubectl("apply", "-f", "-", stdin=json.dumps(runtime))
    apply(3)
    service.wait_ready()
    said = service.ask({"instances": [[1, 2], [3, 4]]})
    pods = service.kubectl("get", "pods", "-l", "app=isvc.spread-predictor-worker", "-o", "name").split()
    assert said == {
        "predictions": [30, 70],
        "workers": sorted(name.removeprefix("pod/") for name in pods),
        "size": "/mnt/models",
    }
    assert len(pods) == 2
    # One node more: all of them are new, and find each other beside the old ones.
    apply(4)

    def workers() -> int:
        try:
            return len(service.ask({"instances": [[1]]})["workers"])
        except urllib.error.HTTPError as error:
            error.close()  # the old head without its workers
            return 0

    until(lambda: workers() == 3, "the new nodes answer")
    service.wait_ready()
    heads = "svc/spread-head-1"
    until(lambda: service.kubectl("get", heads, "--ignore-not-found") == "", "the old head's Service is gone")
