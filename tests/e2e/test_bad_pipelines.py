"""What is wrong with a pipeline or a manifest is said at the door, with its field; nothing is half-made."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(200)

CLIENT = """
    import sys
    from kfp import Client, dsl
    from kfp_server_api import ApiException

    @dsl.component(base_image="python:3.11")
    def double(number: int) -> int:
        return 2 * number

    @dsl.container_component
    def foreign():
        return dsl.ContainerSpec(image="acme/train:7", command=["train"])

    @dsl.component(base_image="python:3.11", packages_to_install=["no-such-package-of-anybody==9.9.9"])
    def needs():
        pass

    @dsl.component(base_image="python:3.11")
    def fill(data: dsl.Output[dsl.Dataset]):
        with open(data.path, "wb") as file:
            file.write(b"x" * 40_000_000)

    @dsl.pipeline(name="doubled")
    def doubled(number: int):
        double(number=number)

    @dsl.pipeline(name="elsewhere")
    def elsewhere():
        foreign()

    @dsl.pipeline(name="unresolved")
    def unresolved():
        needs()

    @dsl.pipeline(name="filled")
    def filled():
        fill()

    client = Client(host=sys.argv[1])
    pipeline, arguments = globals()[sys.argv[2]], eval(sys.argv[3])
    try:
        run = client.create_run_from_pipeline_func(pipeline, arguments=arguments)
    except ApiException as error:
        print("REFUSED", error.status, error.body)
        raise SystemExit
    done = client.wait_for_run_completion(run.run_id, timeout=120, sleep_duration=0.3)
    print(done.state, done.error)
"""


@pytest.fixture
def submit(tmp_path: Path, client_env: Callable[[str], Path]) -> Callable[..., str]:
    script = tmp_path / "client.py"
    script.write_text(textwrap.dedent(CLIENT))

    def run(platform: Any, pipeline: str, arguments: str = "{}") -> str:
        command = [str(client_env("demo")), "-W", "ignore", str(script), platform.web, pipeline, arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def count_runs(platform: Any) -> int:
    with urllib.request.urlopen(f"{platform.web}/apis/v2beta1/runs", timeout=10) as answer:
        return int(json.load(answer).get("total_size", 0))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("{}", ["number", "Required"]),
        ("{'number': 'many'}", ["number", "many"]),
        ("{'number': 1, 'colour': 'red'}", ["colour"]),
    ],
)
def test_wrong_parameters_are_refused_and_no_run_is_made(
    platform: Any, submit: Callable[..., str], arguments: str, expected: list[str]
) -> None:
    before = count_runs(platform)
    said = submit(platform, "doubled", arguments)
    assert "REFUSED 400" in said
    for word in expected:
        assert word in said
    assert count_runs(platform) == before


def test_the_sdk_shows_each_refusal_with_its_field(platform: Any, client_env: Callable[[str], Path]) -> None:
    script = Path(__file__).with_name("kfp_refusals_session.py")
    command = [str(client_env("demo")), "-W", "ignore", str(script), platform.web]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout.strip().endswith("ok"), done.stdout + done.stderr


def test_an_image_that_cannot_run_here_is_refused_with_its_field(platform: Any, submit: Callable[..., str]) -> None:
    before = count_runs(platform)
    said = submit(platform, "elsewhere")
    assert "REFUSED 400" in said
    assert "acme/train:7" in said
    assert "container.image" in said
    assert "shallop env add" in said
    assert count_runs(platform) == before


def test_a_package_that_nobody_has_fails_the_step_with_the_resolvers_words(
    platform: Any, submit: Callable[..., str]
) -> None:
    said = submit(platform, "unresolved")
    assert said.splitlines()[-1].startswith("FAILED") or "FAILED" in said
    assert "no-such-package-of-anybody" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_artifact_disk_fails_the_step_and_not_the_platform(
    own_platform: Any, submit: Callable[..., str]
) -> None:
    artifacts = own_platform.home / "artifacts"
    artifacts.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(artifacts)], check=True)
    try:
        own_platform.up()
        said = submit(own_platform, "filled")
        assert "FAILED" in said
        assert "No space left" in said or "full" in said
        assert "SUCCEEDED" in submit(own_platform, "doubled", "{'number': 4}")
    finally:
        own_platform.down()
        subprocess.run(["umount", str(artifacts)], check=True)


MANIFESTS = {
    "malformed YAML": ("kind: Pod\n  metadata: {", "error"),
    "unknown field of a Pod": (
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "x"},
                "spec": {"containers": [{"name": "a", "image": "python:3.11", "comand": ["true"]}]},
            }
        ),
        'unknown field "spec.containers[0].comand"',
    ),
    "wrong type in a Deployment": (
        json.dumps(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "x"},
                "spec": {"replicas": "three", "selector": {}, "template": {}},
            }
        ),
        "replicas",
    ),
    "unknown field of an InferenceService": (
        json.dumps(
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": "x"},
                "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUrl": "/m"}}},
            }
        ),
        "storageUrl",
    ),
    "no format in an InferenceService": (
        json.dumps(
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": "x"},
                "spec": {"predictor": {"model": {"storageUri": "/m"}}},
            }
        ),
        "modelFormat",
    ),
}


@pytest.mark.parametrize("what", sorted(MANIFESTS))
def test_a_bad_manifest_is_refused_with_the_field(platform: Any, what: str) -> None:
    manifest, expected = MANIFESTS[what]
    said = platform.kubectl("create", "-f", "-", stdin=manifest, check=False)
    assert expected in said
    assert " created" not in said
    assert (
        "x" not in platform.kubectl("get", "pods,deployments,inferenceservices", "-o", "name").replace("/", " ").split()
    )


def test_a_list_of_objects_is_applied_as_a_whole(platform: Any) -> None:
    items = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"listed-{n}"}, "data": {"n": str(n)}}
        for n in range(2)
    ]
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    said = platform.kubectl("apply", "-f", "-", stdin=manifest)
    assert said.count("created") == 2
