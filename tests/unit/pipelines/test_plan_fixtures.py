"""The 40 pipelines of the KFP project through the planner, with the components' results computed here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shallop.pipelines.inputs import Artifact, RunInfo, TaskError, Values, coerce
from shallop.pipelines.ir import Pipeline, load_package, parse_pipeline
from shallop.pipelines.plan import ImportArtifact, Plan, RunState, StartTask, TaskFailed, TaskState, TaskSucceeded
from shallop.pipelines.render import built_in_image, claim_name, render_claim, render_pod, render_workspace_claim
from shallop.pipelines.validation import check_parameters, check_pipeline, warnings_of

FIXTURES = Path(__file__).parents[3] / ".." / "shared" / "fixtures" / "kfp"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.yaml"))
RUN = RunInfo("run-1", "my run", "p-abcde", "/root", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
FAILING = {
    "fail_v2",
    "pipeline_with_exit_handler",
    "pipeline_with_task_final_status",
    "pipeline_with_task_using_ignore_upstream_failure",
}
GIVEN = {
    "STRING": "text",
    "NUMBER_INTEGER": 5,
    "NUMBER_DOUBLE": 1.5,
    "BOOLEAN": True,
    "LIST": ["x"],
    "STRUCT": {"A": 1, "B": 2},
}
pytestmark = pytest.mark.skipif(not NAMES, reason="the shared fixtures are not beside this checkout")

Component = Callable[[dict[str, Any]], Any]
COMPONENTS: dict[str, Component] = {
    "add_numbers": lambda p: p.get("a", p.get("first")) + p.get("b", p.get("second")),
    "concat_message": lambda p: p.get("message1", p.get("first")) + p.get("message2", p.get("second")),
    "read_env_var": lambda p: "env_var_value",
    "flip_coin": lambda p: "heads",
    "flip_coin_op": lambda p: "heads",
    "random_num": lambda p: p["high"],
    "split_ids": lambda p: p["ids"].split(","),
    "prepend_id": lambda p: f"model_id_{p['content']}",
    "add": lambda p: sum(sum(row) for row in p["nums"]) if "nums" in p else p["a"] + p["b"],
    "add_two_nums": lambda p: p["x"] + p["y"],
    "double": lambda p: 2 * p["num"],
    "args_generator_op": lambda p: [{"A_a": "1", "B_b": "2"}, {"A_a": "10", "B_b": "20"}],
    "nested_return": lambda p: [{"A_a": "1", "B_b": "2"}, {"A_a": "10", "B_b": "20"}],
    "generate_secret_name": lambda p: "test-secret-3",
    "print_op": lambda p: p.get("message", p.get("msg")),
    "print_op1": lambda p: p.get("msg"),
    "core_comp": lambda p: p.get("input"),
}
ANY_OUTPUT = {"STRING": "s", "NUMBER_INTEGER": 1, "NUMBER_DOUBLE": 1.5, "BOOLEAN": True, "STRUCT": {"a": 1}}


class Run:
    """One finished run of a fixture."""

    def __init__(self, name: str, parameters: dict[str, Any] | None = None, fails: str = "fail") -> None:
        spec, platform = load_package((FIXTURES / f"{name}.yaml").read_bytes(), name)
        self.pipeline = parse_pipeline(spec, platform)
        definitions = self.pipeline.root.input_definitions.parameters
        required = {n: GIVEN[d.kind] for n, d in definitions.items() if not d.is_optional and not d.has_default}
        self.parameters = {**required, **(parameters or {})}
        assert check_pipeline(self.pipeline, lambda image, argv: None) == []
        assert check_parameters(self.pipeline, self.parameters) == []
        assert warnings_of(self.pipeline) == []
        self.fails = fails
        self.plan = Plan(self.pipeline, RUN, self.parameters)
        self.pods: dict[str, dict[str, Any]] = {}
        self.started: list[str] = []
        self.peak: Counter[str] = Counter()
        waiting = self._do(self.plan.begin())
        while waiting:
            waiting.extend(self._do(self.plan.apply(self._answer(waiting.pop(0)))))

    def _do(self, actions: list[Any]) -> list[StartTask | ImportArtifact]:
        running = [one for one in self.plan.tasks.values() if one.state is TaskState.RUNNING]
        self.peak |= Counter(one.parent for one in running if one.iteration is not None)
        return [action for action in actions if isinstance(action, StartTask | ImportArtifact)]

    def _answer(self, action: StartTask | ImportArtifact) -> TaskSucceeded | TaskFailed:
        self.started.append(action.path.removeprefix("root/"))
        if isinstance(action, ImportArtifact):
            found = {"artifact": [Artifact("artifact", action.uri, action.type, action.metadata)]}
            return TaskSucceeded(action.path, action.attempt, Values({}, found))
        if built_in_image(self.pipeline, action):
            render_claim(RUN, action, namespace="team")
            return TaskSucceeded(action.path, action.attempt, Values({"name": claim_name(RUN, action)}))
        self.pods[self.started[-1]] = render_pod(self.pipeline, RUN, action, namespace="team")
        if action.task_name.startswith(self.fails):
            return TaskFailed(action.path, action.attempt, TaskError("exit code 1"))
        return TaskSucceeded(action.path, action.attempt, self._outputs(action))

    def _outputs(self, action: StartTask) -> Values:
        component = self.pipeline.components[action.component]
        container = self.pipeline.executors[action.executor_label].container
        assert container is not None
        function = container.args[-1] if "--function_to_execute" in container.args else ""
        declared = component.output_definitions
        outputs: dict[str, Any] = {}
        for name, definition in declared.parameters.items():
            computed = COMPONENTS[function](action.inputs.parameters) if function in COMPONENTS else None
            if computed is None:
                computed = ANY_OUTPUT.get(definition.kind, [{"a": 1}])
            outputs[name] = coerce(computed, definition.kind, name)
        artifacts = {n: [Artifact(n, f"{action.uuid}/{n}", d.artifact_type)] for n, d in declared.artifacts.items()}
        return Values(outputs, artifacts)

    @property
    def outputs(self) -> dict[str, Any]:
        return self.plan.tasks["root"].outputs.parameters

    def states(self) -> dict[str, str]:
        return {path.removeprefix("root/"): str(one.state) for path, one in self.plan.tasks.items() if path != "root"}

    def given(self, path: str) -> dict[str, Any]:
        """What the component at a path gets as parameters: from the executor input of its Pod."""
        args = self.pods[path]["spec"]["containers"][0]["args"]
        task = json.loads(args[args.index("--task") + 1])
        values: dict[str, Any] = task["executorInput"].get("inputs", {}).get("parameterValues", {})
        return values

    def argv(self, path: str) -> list[str]:
        args: list[str] = self.pods[path]["spec"]["containers"][0]["args"]
        return args[args.index("--") + 1 :]


@pytest.mark.parametrize("name", NAMES)
def test_every_fixture_ends_in_its_known_state(name: str) -> None:
    run = Run(name)
    expected = RunState.FAILED if name in FAILING else RunState.SUCCEEDED
    assert run.plan.state is expected
    assert len(run.started) == len(set(run.started))


def test_values_of_single_steps() -> None:
    assert Run("add_numbers", {"a": 5, "b": 5}).outputs == {"Output": 10}
    assert Run("concat_message", {"message1": "message1", "message2": "message2"}).outputs == {
        "Output": "message1message2"
    }
    run = Run("component_with_env_variable")
    env = run.pods["read-env-var"]["spec"]["containers"][0]["env"]
    assert {"name": "KFP_TEST_ENV_VAR", "value": "env_var_value"} in env


def test_nested_loops_give_nested_lists() -> None:
    run = Run("nested_with_parameters")
    assert run.outputs == {"Output": [[4, 6, 8], [6, 8, 10], [8, 10, 12]]}
    assert run.given("add") == {"nums": [[4, 6, 8], [6, 8, 10], [8, 10, 12]]}
    assert COMPONENTS["add"](run.given("add")) == 72


def test_collected_parameters_come_in_order() -> None:
    run = Run("collected_parameters")
    assert run.given("consume-ids") == {"ids": ["model_id_s1", "model_id_s2", "model_id_s3"]}
    assert run.given("collecting-parameters/for-loop-1[1]/consume-single-id") == {"id": "model_id_s2"}


def test_nested_return() -> None:
    assert Run("nested_return").outputs == {"Output": [{"A_a": "1", "B_b": "2"}, {"A_a": "10", "B_b": "20"}]}


def test_one_branch_runs_and_the_other_is_skipped() -> None:
    run = Run("flip_coin")
    assert run.states()["condition-1"] == "SUCCEEDED"
    assert run.states()["condition-4"] == "SKIPPED"
    assert run.given("condition-1/condition-2/print-msg")["msg"] == "heads and 9 > 5!"
    oneof = Run("parameter_oneof")
    assert oneof.states()["mantle/core/condition-branches-1/condition-3"] == "SKIPPED"
    assert oneof.given("crust-comp") == {"input": "Got heads!"}


def test_loop_items_are_taken_apart() -> None:
    run = Run("pipeline_with_loops")
    assert run.given("for-loop-2[1]/print-text-2") == {"msg": "10"}
    assert run.given("for-loop-4[0]/print-struct-2") == {"struct": {"A_a": "1", "B_b": "2"}}
    assert run.given("for-loop-1[0]/print-text") == {"msg": "a"}


def test_the_parallelism_of_loops_is_kept() -> None:
    run = Run("pipeline_with_parallelfor_parallelism")
    limits = {
        path: one.task.iterator_policy.parallelism_limit
        for path, one in run.plan.tasks.items()
        if one.kind == "loop" and one.task
    }
    assert any(limits.values())
    assert all(run.peak[path] <= limit for path, limit in limits.items() if limit)


def test_exit_tasks_run_once_and_see_the_final_status() -> None:
    run = Run("pipeline_with_exit_handler")
    assert run.started.count("print-op") == 1
    status = Run("pipeline_with_task_final_status").given("exit-op")["status"]
    assert status["state"] == "FAILED"
    assert status["pipelineTaskName"] == "exit-handler-1"
    assert status["error"]["message"]


def test_a_task_that_ignores_a_failure_gets_its_default() -> None:
    run = Run("pipeline_with_task_using_ignore_upstream_failure")
    assert run.states() == {"fail-op": "FAILED", "print-op": "SUCCEEDED"}
    assert run.given("print-op") == {}


def test_placeholders_of_the_run() -> None:
    run = Run("pipeline_with_placeholders")
    given = run.given("print-all-placeholders")
    assert given["job_id"] == "run-1"
    assert given["job_name"] == "my run"
    assert given["job_resource_name"] == "p-abcde"
    assert given["task_name"] == "print-all-placeholders"
    assert given["task_id"]


def test_concat_ifpresent_and_text_placeholders() -> None:
    assert Run("pipeline_with_concat_placeholder").argv("component-with-concat-placeholder")[-1] == "one+two=three"
    assert Run("arguments_parameters", {"param2": "b"}).argv("echo") == ["echo", "hello-b"]
    optional = Run("components_with_optional_artifacts")
    assert optional.argv("custom-artifact-printer") == ["echo", "No artifact provided!"]


def test_optional_inputs_of_nested_pipelines_take_their_defaults() -> None:
    run = Run("nested_pipeline_opt_input_child_level_compiled")
    assert run.given("nested-pipeline/component-a-int") == {"componentInputInt": 1}
    assert run.given("nested-pipeline/component-b-int") == {"componentInputInt": 0}
    assert run.given("nested-pipeline/component-b-bool") == {"componentInputBool": False}
    assert Run("component_with_optional_inputs").given("component-op") == {"input1": "Hello", "input2": "World"}


def test_secrets_become_references() -> None:
    run = Run("pipeline_with_secret_as_env")
    env = {one["name"]: one.get("valueFrom") for one in run.pods["comp"]["spec"]["containers"][0]["env"]}
    assert env["USER_NAME"] == {"secretKeyRef": {"name": "test-secret-1", "key": "username"}}
    assert env["PASSWORD_VAR2"] == {"secretKeyRef": {"name": "test-secret-3", "key": "password"}}


def test_a_volume_is_made_mounted_and_deleted() -> None:
    run = Run("pipeline_with_volume")
    assert run.started == ["createpvc", "producer", "consumer", "deletepvc"]
    spec = run.pods["producer"]["spec"]
    assert spec["volumes"] == [{"name": "p-abcde-my-pvc", "persistentVolumeClaim": {"claimName": "p-abcde-my-pvc"}}]
    assert spec["containers"][0]["volumeMounts"] == [{"name": "p-abcde-my-pvc", "mountPath": "/data"}]
    assert run.plan.tasks["root/deletepvc"].inputs.parameters == {"pvc_name": "p-abcde-my-pvc"}


def test_the_workspace_is_one_claim_that_every_task_mounts() -> None:
    run = Run("pipeline_with_workspace")
    claim = render_workspace_claim(run.pipeline, RUN, namespace="team")
    assert claim is not None
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "standard",
    }
    assert run.given("write-to-workspace") == {"workspace_path": "/kfp-workspace"}
    for pod in run.pods.values():
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        assert [mount["mountPath"] for mount in mounts] == ["/kfp-workspace"]
        volume = pod["spec"]["volumes"][0]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_a_retried_task_shows_its_attempt() -> None:
    run = Run("pipeline_with_retry", fails="add")
    assert run.plan.state is RunState.FAILED
    assert run.started == ["add"] * 4
    env = {one["name"]: one.get("value") for one in run.pods["add"]["spec"]["containers"][0]["env"]}
    assert env["KFP_RETRY_INDEX"] == "3"
    assert run.given("add") == {"a": 1, "b": 7}


def _pipeline(name: str) -> Pipeline:
    return parse_pipeline(*load_package((FIXTURES / f"{name}.yaml").read_bytes(), name))


def test_a_missing_parameter_is_named_with_its_type() -> None:
    errors = check_parameters(_pipeline("add_numbers"), {"a": "5"})
    assert [f"{one.field}: {one.message}" for one in errors] == [
        'runtime_config.parameters.a: Invalid value: "5": NUMBER_INTEGER takes an integer',
        "runtime_config.parameters.b: Required value: an integer, without a default",
    ]
