"""What people see of a server with several users, in a real browser: the login, their namespaces, no more."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).parents[2]
SECRET = "a-secret-of-sixteen-characters-or-more"
RBAC = "rbac.authorization.k8s.io"

pytestmark = pytest.mark.timeout(300)
expect.set_options(timeout=30_000)


def call(url: str, token: str, body: Any = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **headers} | ({"Authorization": f"Bearer {token}"} if token else {})
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    request = urllib.request.Request(url, data, given)
    with urllib.request.urlopen(request, timeout=60, context=context if url.startswith("https") else None) as answer:
        return json.load(answer)


def binding(namespace: str, subject: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": subject["name"].partition("@")[0], "namespace": namespace},
        "subjects": [subject],
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "kubeflow-pipelines-edit"},
    }


def document(text: str) -> dict[str, Any]:
    """One task that writes a report as HTML."""
    html = {"artifactType": {"schemaTitle": "system.HTML", "schemaVersion": "0.0.1"}}
    script = f"echo '<h1>{text}</h1>' > {{{{$.outputs.artifacts['page'].path}}}}"
    return {
        "pipelineInfo": {"name": "report"},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": {"write": {"componentRef": {"name": "comp"}, "taskInfo": {"name": "write"}}}}},
        "components": {"comp": {"executorLabel": "exec", "outputDefinitions": {"artifacts": {"page": html}}}},
        "deploymentSpec": {"executors": {"exec": {"container": {"image": "alpine", "command": ["sh", "-c", script]}}}},
    }


@pytest.fixture(scope="module")
def server(platform: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A platform with several users."""
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_web.py")], check=True, cwd=ROOT)
    folder = tmp_path_factory.mktemp("users")
    instance = type(platform)(folder / "home")
    (folder / "secret").write_text(SECRET)
    instance.up("--multi-user", "--proxy-secret-file", str(folder / "secret"))
    yield instance
    instance.down()


@pytest.fixture(scope="module")
def team(server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two namespaces, a run in each; returns a token for each, and the ids of their runs."""
    objects: list[dict[str, Any]] = []
    for name in ("team-a", "team-b", "team-c"):
        objects.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for name in ("anna", "bert"):
        metadata = {"name": name, "namespace": "default"}
        objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    for namespace, account in (("team-a", "anna"), ("team-b", "bert"), ("team-c", "anna")):
        objects.append(binding(namespace, {"kind": "ServiceAccount", "name": account, "namespace": "default"}))
    objects.append(binding("team-b", {"kind": "User", "name": "vera@example.com", "apiGroup": RBAC}))
    manifest = tmp_path_factory.mktemp("objects") / "objects.yaml"
    manifest.write_text("\n---\n".join(map(json.dumps, objects)))
    server.command("apply", "-f", str(manifest))
    admin = (server.home / "token").read_text().strip()
    found = {}
    for namespace, account in (("team-a", "anna"), ("team-b", "bert")):
        url = f"{server.api}/api/v1/namespaces/default/serviceaccounts/{account}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        found[account] = call(url, admin, asked)["status"]["token"]
        base = f"{server.web}/apis/v2beta1"
        experiment = call(f"{base}/experiments", found[account], {"display_name": "work", "namespace": namespace})
        body = {"display_name": f"run of {account}", "pipeline_spec": document(f"Report of {account}")}
        run = call(f"{base}/runs", found[account], body | {"experiment_id": experiment["experiment_id"]})
        found[namespace] = run["run_id"]
        deadline = time.monotonic() + 60
        while call(f"{base}/runs/{run['run_id']}", found[account])["state"] != "SUCCEEDED":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return found


@pytest.fixture
def page(browser: Browser, server: Any, team: dict[str, str]) -> Iterator[Page]:
    context = browser.new_context(base_url=server.web, viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


def test_people_log_in_and_see_their_namespaces(page: Page, team: dict[str, str], server: Any) -> None:
    page.goto(f"/#/runs/details/{team['team-a']}")
    expect(page.get_by_role("heading", name="Log in to shallop")).to_be_visible()
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("unknown, has expired")).to_be_visible()
    page.get_by_label("Token").fill(team["anna"])
    page.get_by_role("button", name="Log in").click()
    # The link leads to the run at once; its report comes from the other origin, for whoever is logged in.
    expect(page.get_by_role("heading", name="run of anna")).to_be_visible()
    page.get_by_test_id("step-root/write").click()
    page.get_by_role("tab", name="Results").click()
    expect(page.frame_locator("iframe.report").get_by_role("heading", name="Report of anna")).to_be_visible()
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""

    page.goto("/#/runs")
    expect(page.get_by_test_id("runs")).to_contain_text("run of anna")
    expect(page.get_by_test_id("runs")).not_to_contain_text("run of bert")
    page.get_by_role("combobox", name="Namespace").click()
    expect(page.get_by_role("option")).to_have_text(["team-a", "team-c"])
    page.get_by_role("option", name="team-c").click()
    expect(page.get_by_text("No runs yet")).to_be_visible()
    page.reload()
    expect(page.get_by_role("combobox", name="Namespace")).to_have_value("team-c")
    page.goto(f"/#/runs/details/{team['team-b']}")
    expect(page.get_by_text("may not get runs").first).to_be_visible()

    # The registry is one for all namespaces, and anna has no right to it.
    page.goto("/#/models")
    expect(page.get_by_text("may not get services").first).to_be_visible()

    # A page that may change nothing: another port of this machine is the same site to a browser.
    refused = page.context.request.post(f"/apis/v2beta1/runs/{team['team-a']}:archive")
    assert refused.status == 401
    page.get_by_role("button", name="default:anna").click()
    page.get_by_role("menuitem", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in to shallop")).to_be_visible()
    assert page.context.cookies() == []
    with pytest.raises(urllib.error.HTTPError, match="401"):
        call(f"{server.web}/ui/v1/overview", "")


def test_a_proxy_in_front_says_who_comes(page: Page, team: dict[str, str], server: Any) -> None:
    headers = {"kubeflow-userid": "vera@example.com", "x-shallop-proxy-secret": SECRET}
    seen = call(f"{server.web}/apis/v2beta1/runs?namespace=team-b", "", None, **headers)
    assert [run["run_id"] for run in seen["runs"]] == [team["team-b"]]
    for changed, status in (
        ({"x-shallop-proxy-secret": "another"}, "401"),
        ({"x-shallop-proxy-secret": ""}, "401"),
        ({"kubeflow-userid": "nobody@example.com"}, "403"),
    ):
        with pytest.raises(urllib.error.HTTPError, match=status):
            call(f"{server.web}/apis/v2beta1/runs?namespace=team-b", "", None, **(headers | changed))
    page.set_extra_http_headers(headers)
    page.goto("/#/runs")
    expect(page.get_by_test_id("runs")).to_contain_text("run of bert")
    expect(page.get_by_role("button", name="vera@example.com")).to_be_visible()
