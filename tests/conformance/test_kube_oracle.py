"""
The API server answers as a real Kubernetes does, request by request; what differs is listed with its reason.

With ``SHALLOP_TEST_KUBECONFIG`` (an administrator's) another server is asked.
"""

import asyncio
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import kube_oracle as oracle
import kube_remote

DIFFERENCES = json.loads((Path(__file__).parent / "kube_differences.json").read_text())
TOPICS = sorted(path.stem for path in oracle.GOLDEN.glob("*.json")) if oracle.GOLDEN.is_dir() else []
_STEP_S = 30
# The recorded cluster had neither a scheduler nor nodes: on others Pods get along.
NEEDS_NO_NODES = frozenset(
    ("defaults_pod", "lists", "nodes_eviction_logs", "patch_merge_json", "quota_limitrange", "workload_controllers")
)


async def _replay(topic: str, home: Path) -> dict[str, list[str]]:
    """Run a file against a fresh server; returns step -> differences."""
    answers: dict[str, object] = {}
    normaliser = oracle.Normaliser()
    run = oracle.run_watch if topic.startswith("watch_") else oracle.run_step
    found = {}
    async with kube_remote.running(home) as server:
        for step in json.loads((oracle.GOLDEN / f"{topic}.json").read_text()):
            try:
                problems = await asyncio.wait_for(run(server, step, answers, normaliser), _STEP_S)
            except (KeyError, TypeError, IndexError) as error:
                # A template that refers to an answer which was another than the recorded one.
                problems = [f"cannot be asked: {error!r}"]
            if problems:
                found[step["name"]] = problems
    return found


@pytest.mark.skipif(not TOPICS, reason="the recorded answers (../shared/fixtures/kube) are not here")
@pytest.mark.parametrize("topic", TOPICS)
def test_answers_are_those_of_a_real_server(topic: str, tmp_path: Path) -> None:
    if kube_remote.KUBECONFIG and topic in NEEDS_NO_NODES:
        pytest.skip("the cluster has nodes")
    found = asyncio.run(_replay(topic, tmp_path / "home"))
    known = set(DIFFERENCES.get(topic, {})) | kube_remote.differences_elsewhere(topic)
    unexpected = {name: problems for name, problems in found.items() if name not in known}
    assert not unexpected, "\n".join(f"{name}: {problem}" for name, list_ in unexpected.items() for problem in list_)


def test_every_known_difference_has_a_reason() -> None:
    assert all(reason for steps in DIFFERENCES.values() for reason in steps.values())
