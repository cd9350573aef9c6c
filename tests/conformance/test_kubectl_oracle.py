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
from collections.abc import Iterator, Mapping
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
_KLOG = re.compile(r"^[EWI]\d{4} .*?\] ", re.MULTILINE)
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
        text = super().text(text.replace(self._server, "<server>").replace("localhost:8080", "<server>"))
        text = _TMP.sub("<tmp>", _DIFF_TIME.sub("<time>", _DESCRIBED_TIME.sub("<time>", text)))
        text = _BUILD.sub(r"\1<build>", _AGE.sub("<age>", _KLOG.sub("<klog>", text)))
        text = _VERSIONS.sub(lambda found: found[1] or f"{found[2]}{found[3]}", _REVISION.sub(r"\1<rv>", text))
        # Columns are aligned by kubectl to what stands in them.
        return re.sub(r"(?<=\S)[ ]{2,}", "   ", text)


def run(kubectl: str, home: Path, step: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(home / "config")}
    return subprocess.run(
        [kubectl, *step["argv"][1:]],
        input=step["stdin"] or "",
        env=environment | (step.get("env") or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def replay(kubectl: str, home: Path, topic: str, server: str) -> dict[str, list[str]]:
    """Run the commands of a file; returns step -> differences."""
    namespace = f"g-kubectl-{topic.replace('_', '-')}"
    for wait in (["create", "ns", namespace], *_AWAITED):
        done = run(kubectl, home, {"argv": ["kubectl", "-n", namespace, *wait], "stdin": None})
        assert done.returncode == 0, done.stderr
    normaliser = Printed(server)
    found = {}
    for step in json.loads((RECORDED / f"{topic}.json").read_text()):
        done = run(kubectl, home, step)
        problems = [] if done.returncode == step["exit"] else [f"exit {done.returncode}, recorded {step['exit']}"]
        for name, text in (("stdout", done.stdout), ("stderr", done.stderr)):
            mine, theirs = normaliser.text(text), normaliser.text(step[name])
            if mine != theirs:
                problems.append(f"{name}\n--- ours\n{mine}\n--- recorded\n{theirs}")
        if problems:
            found[step["name"]] = problems
    run(kubectl, home, {"argv": ["kubectl", "delete", "ns", namespace, "--wait=false"], "stdin": None})
    return found


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
    found = replay(kubectl, tmp_path, topic, config["clusters"][0]["cluster"]["server"])
    known = set(DIFFERENCES.get(f"kubectl/{topic}", {})) | kube_remote.differences_elsewhere(f"kubectl/{topic}")
    unexpected = {name: problems for name, problems in found.items() if name not in known}
    assert not unexpected, "\n".join(f"{name}: {problem}" for name, list_ in unexpected.items() for problem in list_)
