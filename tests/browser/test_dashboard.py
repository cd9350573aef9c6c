"""What a person sees in the dashboard of a whole platform, in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).parents[2]
SESSION = Path(__file__).with_name("showcase_session.py")
BROKEN = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: broken, namespace: default}
spec:
  predictor:
    model:
      modelFormat: {name: sklearn}
      storageUri: /does/not/exist
"""
SEARCH = """
apiVersion: kubeflow.org/v1beta1
kind: Experiment
metadata: {name: seen-search, namespace: default}
spec:
  objective: {type: minimize, objectiveMetricName: loss}
  algorithm: {algorithmName: grid}
  maxTrialCount: 4
  parallelTrialCount: 2
  parameters: [{name: x, parameterType: int, feasibleSpace: {min: "1", max: "4"}}]
  trialTemplate:
    primaryContainerName: main
    trialParameters: [{name: x, reference: x}]
    trialSpec:
      apiVersion: batch/v1
      kind: Job
      spec:
        template:
          spec:
            restartPolicy: Never
            containers:
            - name: main
              image: python:3.11
              command: [python3, -c, "x = ${trialParameters.x}; print(f'loss={(x - 2) ** 2}')"]
"""
JOB = """
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata: {name: broken-job, namespace: default}
spec:
  runtimeRef: {name: plain}
  trainer: {image: "python:3.11", command: [python3, -c, "import nothing_of_this_name"]}
"""

pytestmark = pytest.mark.timeout(400)
expect.set_options(timeout=20_000)


@pytest.fixture(scope="session")
def built() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "build_web.py")], check=True, cwd=ROOT)


@pytest.fixture(scope="session")
def runs(platform: Any, built: None, client_env: Callable[[str], Path]) -> dict[str, str]:
    """Run ids by name: one that succeeded, one that failed, one that is under way."""
    done = subprocess.run(
        [str(client_env("demo")), "-W", "ignore", str(SESSION), platform.web, "pick-a-model", "refusing", "waiting"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ids: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return ids


@pytest.fixture
def page(browser: Browser, platform: Any, built: None) -> Iterator[Page]:
    """A new page; what it writes to the console as an error fails the test."""
    context = browser.new_context(base_url=platform.web, viewport={"width": 1440, "height": 900})
    problems: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    yield opened
    context.close()
    assert problems == []


def step(page: Page, path: str) -> Any:
    return page.get_by_test_id(f"step-{path}")


def test_the_running_step_is_followed(page: Page, runs: dict[str, str]) -> None:
    page.goto(f"/#/runs/details/{runs['waiting']}")
    expect(step(page, "root/wait-for")).to_contain_text("Running")
    expect(step(page, "root/announce")).to_contain_text("Not started")
    step(page, "root/wait-for").click()
    page.get_by_role("tab", name="Logs").click()
    expect(page.get_by_test_id("log")).to_contain_text("beat 3")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text("Stopped").first).to_be_visible()


def test_runs_are_listed_with_states_and_reasons(page: Page, runs: dict[str, str]) -> None:
    page.goto("/#/runs")
    table = page.get_by_test_id("runs")
    expect(table.get_by_role("row").filter(has_text="pick-a-model").first).to_contain_text("Succeeded")
    failed = table.get_by_role("row").filter(has_text="refusing")
    expect(failed).to_contain_text("Failed")
    expect(failed).to_contain_text("row 7 has no label")
    failed.get_by_role("link", name="refusing").click()
    expect(page).to_have_url(re.compile(runs["refusing"]))


def test_the_graph_shows_groups_loops_and_skipped_branches(page: Page, runs: dict[str, str]) -> None:
    page.goto(f"/#/runs/details/{runs['pick-a-model']}")
    inner = "root/exit-handler-1"
    expect(step(page, f"{inner}/evaluate")).to_contain_text("Succeeded")
    for index in (0, 1):
        expect(step(page, f"{inner}/for-loop-3[{index}]/train")).to_be_visible()
    expect(step(page, f"{inner}/condition-5/announce-2")).to_contain_text("Skipped")
    page.get_by_role("button", name="Close candidates", exact=True).click()
    expect(step(page, f"{inner}/for-loop-3[0]/train")).to_have_count(0)


def test_a_failed_step_says_why(page: Page, runs: dict[str, str]) -> None:
    page.goto(f"/#/runs/details/{runs['refusing']}")
    page.get_by_text("Show the step").click()
    panel = page.get_by_test_id("panel")
    expect(panel).to_contain_text("ValueError: row 7 has no label")
    expect(panel).to_contain_text(re.compile(r"s of CPU, at most [0-9.]+ [KM]B of memory"))
    step(page, "root/announce").click()
    expect(panel).to_contain_text("Upstream task 'refuse' ended FAILED")


def test_a_run_is_cloned(page: Page, runs: dict[str, str]) -> None:
    page.goto(f"/#/runs/details/{runs['pick-a-model']}")
    page.get_by_role("button", name="Clone", exact=True).click()
    expect(page.get_by_role("heading", name="Clone of pick-a-model")).to_be_visible()
    expect(page).not_to_have_url(re.compile(runs["pick-a-model"]))
    expect(step(page, "root/exit-handler-1/evaluate")).to_contain_text(re.compile("From cache|Succeeded"))


def test_results_show_metrics_curves_and_a_sandboxed_report(page: Page, runs: dict[str, str]) -> None:
    page.goto(f"/#/runs/details/{runs['pick-a-model']}?tab=results")
    expect(page.get_by_test_id("artifact-counts")).to_contain_text("0.125")
    expect(page.get_by_role("img", name=re.compile("ROC curve"))).to_be_visible()
    expect(page.get_by_test_id("artifact-roc")).to_contain_text("812")
    expect(page.get_by_test_id("artifact-notes").get_by_role("table")).to_contain_text("0.74")
    report = page.frame_locator("iframe[title='Report report']")
    # Its script runs, in an origin of its own.
    expect(report.locator("#ran")).to_have_text("script ran in null")


def test_an_endpoint_that_is_not_ready_says_why(page: Page, platform: Any) -> None:
    page.goto("/#/endpoints")
    expect(page.get_by_role("heading", name="Endpoints")).to_be_visible()
    platform.command("apply", "-f", _manifest(platform, "broken", BROKEN))
    # Nobody reloads: the news of the object come by themselves.
    row = page.get_by_test_id("endpoints").get_by_role("row").filter(has_text="broken")
    expect(row).to_contain_text("/does/not/exist does not exist on this machine", timeout=60_000)
    row.get_by_role("link", name="broken").click()
    expect(page.get_by_text("Why it is not ready")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_disabled()


def test_a_search_shows_its_trials_and_the_best_of_them(page: Page, platform: Any) -> None:
    page.goto("/#/tuning")
    platform.command("apply", "-f", _manifest(platform, "seen-search", SEARCH))
    row = page.get_by_test_id("searches").get_by_role("row").filter(has_text="seen-search")
    expect(row).to_contain_text("4 of 4", timeout=60_000)
    expect(row).to_contain_text("Succeeded")
    row.get_by_role("link", name="seen-search").click()
    expect(page.get_by_test_id("best")).to_have_text("0")
    expect(page.get_by_test_id("history").locator("circle")).to_have_count(4)
    best = page.get_by_test_id("trials").get_by_role("row").filter(has_text=re.compile(r"Succeeded0\s*2"))
    expect(best).to_have_count(1)


def test_a_job_that_failed_says_why(page: Page, platform: Any) -> None:
    page.goto("/#/training")
    platform.command("apply", "-f", _manifest(platform, "broken-job", JOB))
    row = page.get_by_test_id("training").get_by_role("row").filter(has_text="broken-job")
    expect(row).to_contain_text("Failed", timeout=60_000)
    row.get_by_role("link", name="broken-job").click()
    expect(page.get_by_text("Why it failed")).to_be_visible()
    expect(page.get_by_text("nothing_of_this_name")).to_be_visible()


def _manifest(platform: Any, name: str, text: str) -> str:
    path = Path(platform.home).with_name(f"{name}.yaml")
    path.write_text(text)
    return str(path)


def test_the_theme_follows_the_system_and_the_switch(browser: Browser, platform: Any, built: None) -> None:
    context = browser.new_context(base_url=platform.web, color_scheme="dark")
    page = context.new_page()
    page.goto("/")
    root = page.locator("html")
    expect(root).to_have_attribute("data-mantine-color-scheme", "dark")
    page.get_by_role("button", name="Use the light theme").click()
    expect(root).to_have_attribute("data-mantine-color-scheme", "light")
    context.close()


def test_an_empty_page_teaches_the_first_command(page: Page) -> None:
    page.goto("/#/pipelines")
    expect(page.get_by_text("pipeline create")).to_be_visible()


def test_of_very_many_steps_some_are_drawn(page: Page) -> None:
    tasks = {f"task-{number}": {"componentRef": {"name": "c"}, "taskInfo": {"name": "t"}} for number in range(320)}
    for number in range(1, 320):
        tasks[f"task-{number}"]["dependentTasks"] = [f"task-{number - 1}"]  # type: ignore[assignment]
    spec = {
        "pipelineInfo": {"name": "very-many"},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": tasks}},
        "components": {"c": {"executorLabel": "e"}},
        "deploymentSpec": {"executors": {"e": {"container": {"image": "alpine", "command": ["true"]}}}},
    }
    file = {"name": "very-many.yaml", "mimeType": "application/yaml", "buffer": json.dumps(spec).encode()}
    answer = page.request.post("/apis/v2beta1/pipelines/upload?name=very-many", multipart={"uploadfile": file})  # type: ignore[dict-item]
    assert answer.ok, answer.text()
    page.goto(f"/#/pipelines/details/{answer.json()['pipeline_id']}")
    expect(page.get_by_text("20 more steps are not drawn")).to_be_visible()
    expect(page.get_by_label("t: Not started").first).to_be_visible()
