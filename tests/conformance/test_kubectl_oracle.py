"""
The real kubectl prints against our server what it printed against a real one; what differs is listed with its reason.

With ``SHALLOP_TEST_KUBECONFIG`` (an administrator's) another server is asked.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import kube_oracle as oracle
import kube_remote

from shallop.embedded.apiserver import ensure_tls, write_kubeconfig
from shallop.webserver import Server, bind

RECORDED = oracle.GOLDEN.parent / "kubectl"
TOPICS = sorted(path.stem for path in RECORDED.glob("*.json")) if RECORDED.is_dir() else []
Done = subprocess.CompletedProcess[str]
_SETTLE_S = 30.0
DIFFERENCES = json.loads((Path(__file__).parent / "kube_differences.json").read_text())


def _serve(home: Path, ready: threading.Event, stop: threading.Event) -> None:
    async def run() -> None:
        async with oracle.running(home) as server:
            tls = ensure_tls(home / "tls-of-server")
            sock = bind("127.0.0.1", 0, "api_port")
            http = Server(server.asgi, sock, tls=(str(tls.certificate), str(tls.key)))
            await http.start()
            url = f"https://127.0.0.1:{sock.getsockname()[1]}"
            write_kubeconfig(home / "kubeconfig", server=url, ca_pem=tls.ca.read_bytes(), token=oracle.ADMIN_TOKEN)
            ready.set()
            await asyncio.to_thread(stop.wait)
            await http.stop()

    asyncio.run(run())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Kubeconfig of an administrator of the server under test."""
    if kube_remote.KUBECONFIG:
        yield Path(kube_remote.KUBECONFIG)
        return
    home = tmp_path_factory.mktemp("kubectl-oracle") / "home"
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=_serve, args=(home, ready, stop))
    thread.start()
    assert ready.wait(30)
    yield home / "kubeconfig"
    stop.set()
    thread.join(30)


def render_recorded_kubeconfig(given: Mapping[str, Any]) -> dict[str, Any]:
    """The contexts of the recording: ``golden``, who may do everything, and ``user``, who is alice."""
    current = next(item["context"] for item in given["contexts"] if item["name"] == given["current-context"])
    cluster = next(item["cluster"] for item in given["clusters"] if item["name"] == current["cluster"])
    admin = next(item["user"] for item in given["users"] if item["name"] == current["user"])
    alice = {**admin, "as": "alice", "as-groups": ["dev", "system:authenticated"]}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "golden", "cluster": cluster}],
        "users": [{"name": "golden", "user": admin}, {"name": "user", "user": alice}],
        "contexts": [{"name": name, "context": {"cluster": "golden", "user": name}} for name in ("golden", "user")],
        "current-context": "golden",
    }


# ---- Normalisation of texts, as the recording's README describes

_AGE = re.compile(r"(?<=[ \t])(?:(?:\d+[smhdy])+|<invalid>)(?= |\n|$)", re.MULTILINE)
_TMP = re.compile(r"/(?:tmp|var)/[\w./-]*(?:LIVE|MERGED)[\w./-]*|/tmp/[\w./-]+")
_DIFF_TIME = re.compile(r"(?<=\t)20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ [+-]\d{4}")
_DESCRIBED_TIME = re.compile(r"\w{3}, \d\d \w{3} 20\d\d \d\d:\d\d:\d\d [+-]\d{4}")
# What kubectl's libraries log of their own depends on the moment.
_KLOG = re.compile(r"^(?:[EWI]\d{4} .*?\] |<klog>).*\n?", re.MULTILINE)
_BUILD = re.compile(r"((?:buildDate|gitCommit|goVersion|gitTreeState|platform|compiler): ).*")
# Which kubectl runs, and whether its server is another distribution, is not the server's answer.
_VERSIONS = re.compile(r"(gitVersion: v1\.\d+).*|(minor: )\"?(\d+)\+?\"?")
_REVISION = re.compile(r"(Resource Version: +)\d+")


class Printed(oracle.Normaliser):
    """What kubectl printed, without what differs from run to run."""

    def __init__(self, server: str) -> None:
        super().__init__()
        self._server = server.removeprefix("https://")

    def text(self, text: str) -> str:
        # First: the number in the name of a temporary folder may look like a hash.
        text = _TMP.sub("<tmp>", text)
        text = super().text(text.replace(self._server, "<server>").replace("localhost:8080", "<server>"))
        text = _DIFF_TIME.sub("<time>", _DESCRIBED_TIME.sub("<time>", text))
        text = _BUILD.sub(r"\1<build>", _AGE.sub("<age>", _KLOG.sub("", text)))
        text = _VERSIONS.sub(lambda found: found[1] or f"{found[2]}{found[3]}", _REVISION.sub(r"\1<rv>", text))
        # Columns are aligned by kubectl to what stands in them.
        return re.sub(r"(?<=\S)[ ]{2,}", "   ", text)


def run(kubectl: str, home: Path, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Done:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(home / "config")}
    command = [kubectl, *arguments]
    return subprocess.run(
        command, input=stdin, env=environment | (env or {}), capture_output=True, text=True, timeout=100, check=False
    )


def ask(kubectl: str, home: Path, step: Mapping[str, Any], normaliser: Printed) -> list[str]:
    """Run the command of a step; returns the differences."""
    # The recording's machine was idle: what comes gets more time, what is to time out enough to look.
    patience = "60s" if step["exit"] == 0 else "3s"
    arguments = [re.sub(r"^--timeout=\d+s$", f"--timeout={patience}", text) for text in step["argv"][1:]]
    done = run(kubectl, home, *arguments, stdin=step["stdin"] or "", env=step.get("env"))
    problems = [] if done.returncode == step["exit"] else [f"exit {done.returncode}, recorded {step['exit']}"]
    for name, text in (("stdout", done.stdout), ("stderr", done.stderr)):
        mine, theirs = normaliser.text(text), normaliser.text(step[name])
        if "describe" in arguments:
            # It shows maps as Go walks through them, each time in another order.
            mine, theirs = ("\n".join(sorted(filter(None, text.splitlines()))) for text in (mine, theirs))
        if mine != theirs:
            problems.append(f"{name}\n--- ours\n{mine}\n--- recorded\n{theirs}")
    return problems


def replay(kubectl: str, home: Path, topic: str, server: str, known: Container[str]) -> dict[str, list[str]]:
    """Run the commands of a file; returns step -> differences that are not known."""
    namespace = f"g-kubectl-{topic.replace('_', '-')}"
    for arguments in (("create", "ns", namespace), *_AWAITED):
        done = run(kubectl, home, "-n", namespace, *arguments)
        assert done.returncode == 0, done.stderr
    normaliser = Printed(server)
    found = {}
    for step in json.loads((RECORDED / f"{topic}.json").read_text()):
        problems = ask(kubectl, home, step, normaliser)
        deadline = time.monotonic() + _SETTLE_S
        # What is only read may be on its way still.
        while problems and step["name"] not in known and {"get", "describe"} & set(step["argv"]):
            if time.monotonic() > deadline:
                break
            problems = ask(kubectl, home, step, normaliser)
        if problems and step["name"] not in known:
            found[step["name"]] = problems
        if topic == "deployment" and {"set", "scale", "patch", "rollout", "apply"} & set(step["argv"]):
            _wait_until_observed(kubectl, home, namespace)
    run(kubectl, home, "delete", "ns", namespace, "--wait=false")
    return found


def _wait_until_observed(kubectl: str, home: Path, namespace: str) -> None:
    """Let the controller see each change by itself: of two at once it makes one revision."""
    generations = "jsonpath={.metadata.generation} {.status.observedGeneration}"
    deadline = time.monotonic() + _SETTLE_S
    while True:
        printed = run(kubectl, home, "-n", namespace, "get", "deploy", "web", "-o", generations).stdout.split()
        if len(set(printed)) < 2 and len(printed) != 1:
            return
        assert time.monotonic() < deadline, printed
        time.sleep(0.05)


_AWAITED = (
    ["wait", "--for=create", "sa/default", "--timeout=30s"],
    ["wait", "--for=create", "cm/kube-root-ca.crt", "--timeout=30s"],
)


@pytest.mark.skipif(not TOPICS, reason="the recorded answers (../shared/fixtures/kube) are not here")
@pytest.mark.parametrize("topic", TOPICS)
def test_kubectl_prints_what_it_prints_against_a_real_server(
    topic: str, kubectl: str, cluster: Path, tmp_path: Path
) -> None:
    config = render_recorded_kubeconfig(yaml.safe_load(cluster.read_text()))
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    known = set(DIFFERENCES.get(f"kubectl/{topic}", {})) | kube_remote.differences_elsewhere(f"kubectl/{topic}")
    unexpected = replay(kubectl, tmp_path, topic, config["clusters"][0]["cluster"]["server"], known)
    assert not unexpected, "\n".join(f"{name}: {problem}" for name, list_ in unexpected.items() for problem in list_)
