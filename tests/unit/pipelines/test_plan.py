"""The planner, driven by a simulator that runs nothing."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shallop.pipelines.inputs import Artifact, RunInfo, TaskError, Values, task_needs
from shallop.pipelines.ir import Pipeline, parse_pipeline
from shallop.pipelines.plan import (
    CancelRequested,
    Event,
    FinishRun,
    ImportArtifact,
    Plan,
    RetryRequested,
    RunState,
    StartTask,
    StopTask,
    TaskFailed,
    TaskState,
    TaskSucceeded,
    replay,
)

RUN = RunInfo("run-1", "my run", "p-abcde", "/root", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
Answer = Callable[[StartTask | ImportArtifact], Values | None]


# ---- building pipelines


def executor(
    inputs: dict[str, str] | None = None, outputs: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    component: dict[str, Any] = {"executorLabel": "exec"}
    component["inputDefinitions"] = {"parameters": {n: {"parameterType": t} for n, t in (inputs or {}).items()}}
    component["outputDefinitions"] = {"parameters": {n: {"parameterType": t} for n, t in (outputs or {}).items()}}
    return {**component, **more}


def dag(tasks: dict[str, Any], outputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"dag": {"tasks": tasks, "outputs": outputs or {}}, **more}


def task(component: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"componentRef": {"name": component}, "dependentTasks": list(after), **more}


def parameters(**sources: Any) -> dict[str, Any]:
    return {"parameters": sources}


def output_of(producer: str, key: str = "Output") -> dict[str, Any]:
    return {"taskOutputParameter": {"producerTask": producer, "outputParameterKey": key}}


def from_subtask(producer: str, key: str = "Output") -> dict[str, Any]:
    return {"valueFromParameter": {"producerSubtask": producer, "outputParameterKey": key}}


def pipeline(root_tasks: dict[str, Any], components: dict[str, Any], root: dict[str, Any] | None = None) -> Pipeline:
    return parse_pipeline(
        {
            "schemaVersion": "2.1.0",
            "pipelineInfo": {"name": "p"},
            "root": {"dag": {"tasks": root_tasks}, **(root or {})},
            "components": components,
            "deploymentSpec": {
                "executors": {
                    "exec": {"container": {"image": "python:3.11"}},
                    "import": {"importer": {"artifactUri": {"constant": "/data/x.csv"}}},
                }
            },
        }
    )


OP = {"op": executor(outputs={"Output": "STRING"})}
ON_ANY_END = {"triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}}


# ---- running them


class Simulation:
    """Answers every action at once or in a chosen order, and checks what must hold on the way."""

    def __init__(self, pipeline: Pipeline, answer: Answer, inputs: dict[str, Any] | None = None) -> None:
        self.pipeline, self.answer, self.inputs = pipeline, answer, inputs or {}
        self.plan = Plan(pipeline, RUN, self.inputs)
        self.events: list[Event] = []
        self.waiting: list[StartTask | ImportArtifact] = []
        self.stopped: set[str] = set()
        self.started: list[StartTask | ImportArtifact] = []
        self.finished: list[FinishRun] = []
        self.peak: Counter[str] = Counter()
        self._take(self.plan.begin())

    def _take(self, actions: Iterable[Any]) -> None:
        for action in actions:
            if isinstance(action, StartTask | ImportArtifact):
                self.waiting.append(action)
                self.started.append(action)
            elif isinstance(action, StopTask):
                self.stopped.add(action.path)
            elif isinstance(action, FinishRun):
                self.finished.append(action)
        running = Counter(t.parent for t in self.plan.tasks.values() if t.state is TaskState.RUNNING)
        self.peak |= running

    def send(self, event: Event) -> None:
        self.events.append(event)
        self._take(self.plan.apply(event))

    def step(self, index: int = 0) -> None:
        action = self.waiting.pop(index % len(self.waiting))
        outputs = None if action.path in self.stopped else self.answer(action)
        if outputs is None:
            self.send(TaskFailed(action.path, action.attempt, TaskError("exit code 1")))
        else:
            self.send(TaskSucceeded(action.path, action.attempt, outputs))

    def run(self, choose: Callable[[], int] = lambda: 0) -> Simulation:
        while self.waiting:
            self.step(choose())
        return self

    def states(self) -> dict[str, str]:
        return {path.removeprefix("root/"): str(t.state) for path, t in self.plan.tasks.items() if path != "root"}

    def input_of(self, path: str) -> dict[str, Any]:
        return self.plan.tasks[f"root/{path}"].inputs.parameters


def simulate(
    pipeline: Pipeline, answers: dict[str, Any] | None = None, inputs: dict[str, Any] | None = None
) -> Simulation:
    """Run with outputs by task name: a value for ``Output``, None to fail, a function of the action."""

    def answer(action: StartTask | ImportArtifact) -> Values | None:
        value = (answers or {}).get(action.task_name, action.task_name)
        if callable(value):
            value = value(action)
        if value is None or isinstance(value, Values):
            return value
        return Values({"Output": value})

    return Simulation(pipeline, answer, inputs).run()


# ---- order, failure, skipping


def test_a_task_starts_when_all_it_needs_has_ended() -> None:
    done = simulate(pipeline({"c": task("op", "a", "b"), "a": task("op"), "b": task("op", "a")}, OP))
    assert [action.task_name for action in done.started] == ["a", "b", "c"]
    assert done.finished == [FinishRun(RunState.SUCCEEDED, Values(), None)]


def test_a_producer_is_a_dependency_even_when_it_is_not_listed() -> None:
    consumer = executor({"x": "STRING"})
    done = simulate(
        pipeline({"b": task("use", inputs=parameters(x=output_of("a"))), "a": task("op")}, {**OP, "use": consumer})
    )
    assert done.input_of("b") == {"x": "a"}


def test_a_failed_task_omits_what_needs_it_and_leaves_other_branches_running() -> None:
    tasks = {"a": task("op"), "b": task("op", "a"), "c": task("op", "b"), "d": task("op")}
    done = simulate(pipeline(tasks, OP), {"a": None})
    assert done.states() == {"a": "FAILED", "b": "OMITTED", "c": "OMITTED", "d": "SUCCEEDED"}
    assert done.finished[0].state is RunState.FAILED
    assert done.finished[0].error == TaskError("Task 'a' failed: exit code 1")


def test_a_false_condition_skips_the_task_and_what_needs_it_and_the_run_succeeds() -> None:
    body = dag({"inner": task("op")}, inputDefinitions={"parameters": {"x": {"parameterType": "STRING"}}})
    guarded = task(
        "body",
        "a",
        inputs=parameters(x=output_of("a")),
        triggerPolicy={"condition": "inputs.parameter_values['x'] == 'heads'"},
    )
    tasks = {"a": task("op"), "condition-1": guarded, "after": task("op", "condition-1")}
    skipped = simulate(pipeline(tasks, {**OP, "body": body}), {"a": "tails"})
    assert skipped.states() == {"a": "SUCCEEDED", "condition-1": "SKIPPED", "after": "SKIPPED"}
    assert skipped.finished[0].state is RunState.SUCCEEDED
    taken = simulate(pipeline(tasks, {**OP, "body": body}), {"a": "heads"})
    assert taken.states()["condition-1/inner"] == "SUCCEEDED"
    assert taken.states()["after"] == "SUCCEEDED"


def test_a_condition_that_cannot_be_evaluated_fails_the_task_with_its_reason() -> None:
    guarded = task("op", triggerPolicy={"condition": "inputs.parameter_values['nope'] > 1"})
    done = simulate(pipeline({"a": guarded}, OP))
    assert done.states() == {"a": "FAILED"}
    assert "input 'nope' has no value" in done.plan.tasks["root/a"].error.message


def test_an_empty_pipeline_succeeds_at_once() -> None:
    assert simulate(pipeline({}, {})).finished == [FinishRun(RunState.SUCCEEDED, Values(), None)]


def test_a_long_chain_of_omitted_tasks_needs_no_deep_recursion() -> None:
    tasks = {"t0": task("op")} | {f"t{n}": task("op", f"t{n - 1}") for n in range(1, 3000)}
    assert Counter(simulate(pipeline(tasks, OP), {"t0": None}).states().values()) == {"FAILED": 1, "OMITTED": 2999}


# ---- loops and outputs


def loop_pipeline(items: str = "[1, 2, 3]", limit: int = 0, **more: Any) -> Pipeline:
    body = dag(
        {"double": task("double", inputs=parameters(n={"componentInputParameter": "item"}))},
        {"parameters": {"doubled": from_subtask("double")}},
        inputDefinitions={"parameters": {"item": {"parameterType": "NUMBER_INTEGER"}}},
        outputDefinitions={"parameters": {"doubled": {"parameterType": "LIST"}}},
    )
    loop = task(
        "body",
        parameterIterator={"items": {"raw": items}, "itemInput": "item"},
        iteratorPolicy={"parallelismLimit": limit},
        **more,
    )
    sum_up = task("sum", inputs=parameters(all=output_of("for-loop-1", "doubled")))
    components = {
        "body": body,
        "double": executor({"n": "NUMBER_INTEGER"}, {"Output": "NUMBER_INTEGER"}),
        "sum": executor({"all": "LIST"}, {"Output": "NUMBER_INTEGER"}),
    }
    return pipeline({"for-loop-1": loop, "sum": sum_up}, components)


def double(action: StartTask) -> Any:
    return action.inputs.parameters["n"] * 2


def test_a_loop_collects_outputs_in_the_order_of_its_items() -> None:
    simulation = Simulation(
        loop_pipeline(), lambda a: Values({"Output": double(a) if "n" in a.inputs.parameters else 0})
    )
    simulation.run(lambda: -1)
    assert simulation.input_of("sum") == {"all": [2, 4, 6]}
    assert simulation.states()["for-loop-1[2]/double"] == "SUCCEEDED"


def test_a_loop_over_nothing_succeeds_with_empty_outputs() -> None:
    assert simulate(loop_pipeline("[]")).input_of("sum") == {"all": []}


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_loop_never_runs_more_iterations_than_its_limit(limit: int) -> None:
    done = simulate(loop_pipeline(str(list(range(20))), limit), {"double": double})
    assert done.peak["root/for-loop-1"] == limit
    assert done.input_of("sum")["all"] == [2 * n for n in range(20)]


def test_an_iteration_that_failed_fails_the_loop_after_the_others_have_ended() -> None:
    done = simulate(loop_pipeline(limit=1), {"double": lambda a: None if double(a) == 2 else double(a)})
    assert done.states()["for-loop-1"] == "FAILED"
    assert done.states()["for-loop-1[2]"] == "SUCCEEDED"
    assert done.states()["sum"] == "OMITTED"


def test_an_item_of_the_wrong_type_fails_its_iteration_alone() -> None:
    done = simulate(loop_pipeline('[1, "x"]'), {"double": double})
    assert done.states()["for-loop-1[0]"] == "SUCCEEDED"
    assert done.plan.tasks["root/for-loop-1[1]"].error.message.endswith('expected NUMBER_INTEGER, got "x".')


def test_an_artifact_loop_gives_each_iteration_one_artifact_and_collects_a_flat_list() -> None:
    artifact = {"artifactType": {"schemaTitle": "system.Dataset"}}
    body = dag(
        {"use": task("use", inputs={"artifacts": {"d": {"componentInputArtifact": "item"}}})},
        {"artifacts": {"made": {"artifactSelectors": [{"producerSubtask": "use", "outputArtifactKey": "o"}]}}},
        inputDefinitions={"artifacts": {"item": artifact, "all": artifact}},
        outputDefinitions={"artifacts": {"made": artifact}},
    )
    tasks = {
        "make": task("op"),
        "loop": task(
            "body",
            inputs={"artifacts": {"all": {"taskOutputArtifact": {"producerTask": "make", "outputArtifactKey": "o"}}}},
            artifactIterator={"items": {"inputArtifact": "all"}, "itemInput": "item"},
        ),
        "end": task(
            "use",
            inputs={"artifacts": {"d": {"taskOutputArtifact": {"producerTask": "loop", "outputArtifactKey": "made"}}}},
        ),
    }
    use = executor(inputDefinitions={"artifacts": {"d": artifact}})
    made = Values({}, {"o": [Artifact("a", "/a"), Artifact("b", "/b")]})
    answers = {"make": made, "use": lambda a: Values({}, {"o": a.inputs.artifacts["d"]}), "end": Values()}
    done = simulate(pipeline(tasks, {**OP, "body": body, "use": use}), answers)
    assert [a.uri for a in done.plan.tasks["root/loop[1]"].inputs.artifacts["item"]] == ["/b"]
    assert [a.uri for a in done.plan.tasks["root/end"].inputs.artifacts["d"]] == ["/a", "/b"]


def test_oneof_takes_the_branch_that_ran_and_consuming_none_is_an_error() -> None:
    definitions = {"parameters": {"x": {"parameterType": "STRING"}}}
    branch = dag({"inner": task("op")}, {"parameters": {"o": from_subtask("inner")}}, inputDefinitions=definitions)

    def when(value: str) -> dict[str, Any]:
        condition = f"inputs.parameter_values['x'] == '{value}'"
        source = parameters(x={"componentInputParameter": "x"})
        return task("branch", inputs=source, triggerPolicy={"condition": condition})

    selectors = [{"producerSubtask": name, "outputParameterKey": "o"} for name in ("if", "elif")]
    branches = dag(
        {"if": when("one"), "elif": when("two")},
        {"parameters": {"o": {"valueFromOneof": {"parameterSelectors": selectors}}}},
        inputDefinitions=definitions,
    )
    tasks = {
        "flip": task("op"),
        "branches": task("branches", inputs=parameters(x=output_of("flip"))),
        "use": task("use", inputs=parameters(v=output_of("branches", "o"))),
    }
    all_components = {**OP, "branch": branch, "branches": branches, "use": executor({"v": "STRING"})}
    taken = simulate(pipeline(tasks, all_components), {"flip": "two"})
    assert taken.input_of("use") == {"v": "inner"}
    assert taken.states()["branches/if"] == "SKIPPED"
    none = simulate(pipeline(tasks, all_components), {"flip": "three"})
    assert none.plan.tasks["root/use"].error.message == "Input 'v' of task 'use': task 'branches' gave no output 'o'."


def test_a_producer_skipped_in_one_iteration_is_left_out_of_the_collected_list() -> None:
    definitions = {"parameters": {"item": {"parameterType": "NUMBER_INTEGER"}}}
    item = parameters(item={"componentInputParameter": "item"})
    condition = dag({"inner": task("op")}, {"parameters": {"o": from_subtask("inner")}}, inputDefinitions=definitions)
    body = dag(
        {"condition-1": task("if", inputs=item, triggerPolicy={"condition": "inputs.parameter_values['item'] > 1"})},
        {"parameters": {"o": from_subtask("condition-1", "o")}},
        inputDefinitions=definitions,
        outputDefinitions={"parameters": {"o": {"parameterType": "LIST"}}},
    )
    loop = task("body", parameterIterator={"items": {"raw": "[1, 2, 3]"}, "itemInput": "item"})
    tasks = {"loop": loop, "use": task("use", inputs=parameters(v=output_of("loop", "o")))}
    done = simulate(pipeline(tasks, {**OP, "if": condition, "body": body, "use": executor({"v": "LIST"})}))
    assert done.input_of("use") == {"v": ["inner", "inner"]}


# ---- exit tasks, ignored failures, retries


def exit_pipeline() -> Pipeline:
    status = {"parameters": {"s": {"parameterType": "TASK_FINAL_STATUS", "isOptional": True}}}
    exit_task = task(
        "exit",
        "exit-handler-1",
        inputs=parameters(s={"taskFinalStatus": {"producerTask": "exit-handler-1"}}),
        **ON_ANY_END,
    )
    tasks = {"exit-handler-1": task("body"), "exit": exit_task, "last": task("op", "exit")}
    return pipeline(
        tasks,
        {
            **OP,
            "body": dag({"work": task("op"), "more": task("op", "work")}),
            "exit": executor(inputDefinitions=status),
        },
    )


def test_the_exit_task_runs_once_and_the_run_still_fails() -> None:
    done = simulate(exit_pipeline(), {"work": None})
    assert [a.task_name for a in done.started] == ["work", "exit", "last"]
    assert done.finished[0].state is RunState.FAILED
    assert done.input_of("exit")["s"] == {
        "state": "FAILED",
        "pipelineTaskName": "exit-handler-1",
        "pipelineJobResourceName": "p-abcde",
        "error": {"code": 13, "message": "Task 'work' failed: exit code 1"},
    }


def test_the_final_status_of_a_body_that_ended_well_is_complete() -> None:
    done = simulate(exit_pipeline())
    assert done.input_of("exit")["s"]["state"] == "COMPLETE"
    assert done.finished[0].state is RunState.SUCCEEDED


def test_a_task_that_ignores_upstream_failure_runs_with_its_default() -> None:
    use = executor(
        inputDefinitions={"parameters": {"m": {"parameterType": "STRING", "isOptional": True, "defaultValue": "d"}}}
    )
    tasks = {"a": task("op"), "b": task("use", "a", inputs=parameters(m=output_of("a")), **ON_ANY_END)}
    done = simulate(pipeline(tasks, {**OP, "use": use}), {"a": None})
    assert done.states() == {"a": "FAILED", "b": "SUCCEEDED"}
    assert done.input_of("b") == {}
    assert done.finished[0].state is RunState.FAILED


def test_a_task_is_retried_as_often_as_its_policy_says_with_growing_pauses() -> None:
    policy = {"maxRetryCount": 3, "backoffDuration": "10s", "backoffFactor": 2.0, "backoffMaxDuration": "30s"}
    done = simulate(pipeline({"a": task("op", retryPolicy=policy)}, OP), {"a": None})
    assert [(a.attempt, a.retry_index, a.delay_s) for a in done.started] == [
        (0, 0, 0.0),
        (1, 1, 10.0),
        (2, 2, 20.0),
        (3, 3, 30.0),
    ]
    assert len({a.uuid for a in done.started}) == 1
    assert done.states() == {"a": "FAILED"}


def test_a_failed_sub_dag_is_tried_again_and_keeps_what_ended_well() -> None:
    policy = {"maxRetryCount": 2, "backoffDuration": "5s"}
    inner = dag({"good": task("op"), "bad": task("op", "good"), "after": task("op", "bad")})
    plan = pipeline({"sub": task("inner", retryPolicy=policy), "end": task("op", "sub")}, {**OP, "inner": inner})
    done = simulate(plan, {"bad": lambda action: None if action.attempt < 2 else "x"})
    assert [(a.path.removeprefix("root/"), a.delay_s) for a in done.started] == [
        ("sub/good", 0.0),
        ("sub/bad", 0.0),
        ("sub/bad", 5.0),
        ("sub/bad", 10.0),
        ("sub/after", 0.0),
        ("end", 0.0),
    ]
    assert done.plan.state == "SUCCEEDED"
    assert simulate(plan, {"bad": None}).plan.state == "FAILED"


def test_a_loop_with_a_retry_policy_tries_only_the_failed_iterations_again() -> None:
    failing_once = lambda action: None if action.path.endswith("[1]/double") and not action.attempt else double(action)  # noqa: E731
    done = simulate(loop_pipeline(retryPolicy={"maxRetryCount": 1}), {"double": failing_once, "sum": 12})
    assert done.plan.state == "SUCCEEDED"
    assert done.input_of("sum") == {"all": [2, 4, 6]}
    assert Counter(a.path for a in done.started)["root/for-loop-1[1]/double"] == 2
    assert len(done.started) == 5


def test_a_failure_that_no_retry_can_help_is_not_retried() -> None:
    simulation = Simulation(pipeline({"a": task("op", retryPolicy={"maxRetryCount": 3})}, OP), lambda a: None)
    simulation.send(TaskFailed("root/a", 0, TaskError("no such image"), retryable=False))
    assert simulation.finished[0].state is RunState.FAILED


def test_late_and_doubled_events_change_nothing() -> None:
    simulation = Simulation(pipeline({"a": task("op", retryPolicy={"maxRetryCount": 1})}, OP), lambda a: None)
    simulation.send(TaskFailed("root/a", 0, TaskError("x")))
    for late in (
        TaskFailed("root/a", 0, TaskError("x")),
        TaskSucceeded("root/a", 0, Values()),
        TaskSucceeded("root/z", 0, Values()),
    ):
        assert simulation.plan.apply(late) == []
    simulation.send(TaskSucceeded("root/a", 1, Values()))
    assert simulation.plan.apply(TaskSucceeded("root/a", 1, Values())) == []
    assert simulation.finished[0].state is RunState.SUCCEEDED


# ---- terminate, retry of the run


def test_terminating_stops_what_runs_and_still_runs_the_exit_task() -> None:
    simulation = Simulation(exit_pipeline(), lambda a: Values({"Output": ""}))
    simulation.send(CancelRequested())
    assert simulation.plan.state is RunState.CANCELING
    assert simulation.stopped == {"root/exit-handler-1/work"}
    simulation.run()
    assert simulation.states() == {
        "exit-handler-1": "CANCELED",
        "exit-handler-1/work": "CANCELED",
        "exit-handler-1/more": "CANCELED",
        "exit": "SUCCEEDED",
        "last": "CANCELED",
    }
    assert simulation.finished[0].state is RunState.CANCELED
    assert simulation.input_of("exit")["s"]["state"] == "CANCELLED"


def test_terminating_twice_stops_the_exit_task_too() -> None:
    simulation = Simulation(exit_pipeline(), lambda a: Values({"Output": ""}))
    simulation.send(CancelRequested())
    simulation.step()
    assert simulation.waiting[0].task_name == "exit"
    simulation.send(CancelRequested())
    assert "root/exit" in simulation.stopped
    simulation.run()
    assert simulation.finished[0].state is RunState.CANCELED


def test_an_exit_task_whose_body_never_began_does_not_run() -> None:
    tasks = {"a": task("op"), "exit-handler-1": task("op", "a"), "exit": task("op", "exit-handler-1", **ON_ANY_END)}
    simulation = Simulation(pipeline(tasks, OP), lambda a: Values())
    simulation.send(CancelRequested())
    simulation.run()
    assert set(simulation.states().values()) == {"CANCELED"}


def test_terminating_a_finished_run_changes_nothing() -> None:
    done = simulate(pipeline({"a": task("op")}, OP))
    assert done.plan.apply(CancelRequested()) == []
    assert done.plan.state is RunState.SUCCEEDED


def test_retrying_a_run_keeps_what_ended_well_and_runs_the_rest_and_exit_tasks_again() -> None:
    tasks = {
        "a": task("op"),
        "exit-handler-1": task("body", "a"),
        "exit": task("op", "exit-handler-1", **ON_ANY_END),
        "last": task("op", "exit-handler-1"),
    }
    body = dag({"good": task("op"), "bad": task("op", "good"), "worse": task("op", "bad")})
    failing = {"bad": True}
    simulation = Simulation(
        pipeline(tasks, {**OP, "body": body}),
        lambda a: None if a.task_name == "bad" and failing["bad"] else Values({"Output": ""}),
    ).run()
    assert simulation.finished[-1].state is RunState.FAILED
    simulation.started.clear()
    failing["bad"] = False
    simulation.send(RetryRequested())
    simulation.run()
    assert [a.task_name for a in simulation.started] == ["bad", "worse", "exit", "last"]
    assert {a.task_name: a.attempt for a in simulation.started} == {"bad": 1, "worse": 0, "exit": 1, "last": 0}
    assert simulation.finished[-1].state is RunState.SUCCEEDED
    assert set(simulation.states().values()) == {"SUCCEEDED"}


def test_retrying_a_run_runs_only_the_iterations_of_a_loop_that_failed() -> None:
    failing = {2}
    simulation = Simulation(
        loop_pipeline(limit=1),
        lambda a: (
            None if a.inputs.parameters.get("n") in failing else Values({"Output": a.inputs.parameters.get("n", 0)})
        ),
    ).run()
    simulation.started.clear()
    failing.clear()
    simulation.send(RetryRequested())
    simulation.run()
    assert [a.path for a in simulation.started] == ["root/for-loop-1[1]/double", "root/sum"]
    assert simulation.input_of("sum") == {"all": [1, 2, 3]}


def test_a_run_that_succeeded_is_not_retried() -> None:
    assert simulate(pipeline({"a": task("op")}, OP)).plan.apply(RetryRequested()) == []


def test_a_run_without_a_required_parameter_fails_before_it_starts_and_again_when_retried() -> None:
    root = {"inputDefinitions": {"parameters": {"x": {"parameterType": "STRING"}}}}
    plan = Plan(pipeline({"a": task("op")}, OP, root), RUN, {})
    failed = FinishRun(RunState.FAILED, Values(), TaskError("Pipeline parameter 'x' is required and has no value.", 3))
    assert plan.begin()[-1] == failed
    assert plan.apply(RetryRequested())[-1] == failed


# ---- importers and Pod settings


def test_an_importer_gives_its_uri_and_takes_no_container() -> None:
    component = {"executorLabel": "import", "outputDefinitions": {"artifacts": {"artifact": {}}}}
    simulation = Simulation(pipeline({"i": task("import")}, {"import": component}), lambda a: Values())
    (action,) = simulation.waiting
    assert isinstance(action, ImportArtifact)
    assert (action.uri, action.reimport) == ("/data/x.csv", False)


# ---- properties


@st.composite
def random_pipeline(draw: st.DrawFn, depth: int = 2) -> Pipeline:
    components: dict[str, Any] = {"op": executor({"n": "STRING"}, {"Output": "STRING"})}
    components["op"]["inputDefinitions"]["parameters"]["n"] |= {"isOptional": True}

    def make_dag(level: int) -> dict[str, Any]:
        tasks: dict[str, Any] = {}
        for index in range(draw(st.integers(0, 4))):
            before = draw(st.lists(st.sampled_from(sorted(tasks)), unique=True, max_size=3)) if tasks else []
            kind = draw(st.sampled_from(["op", "op", "dag", "loop"])) if level else "op"
            made = task("op", *before)
            if kind != "op":
                name = f"c{len(components)}"
                components[name] = {}
                components[name] = make_dag(level - 1)
                made = task(name, *before)
            if kind == "loop":
                made["parameterIterator"] = {
                    "items": {"raw": str(list(range(draw(st.integers(0, 3)))))},
                    "itemInput": "item",
                }
                made["iteratorPolicy"] = {"parallelismLimit": draw(st.integers(0, 2))}
            if kind == "op" and before and draw(st.booleans()):
                made["inputs"] = parameters(n=output_of(before[0]))
            if kind == "op" or draw(st.integers(0, 3)) == 0:
                made["retryPolicy"] = {"maxRetryCount": draw(st.integers(0, 2))}
            policy: dict[str, str] = {}
            if draw(st.integers(0, 4)) == 0:
                policy["condition"] = draw(st.sampled_from(["1 == 1", "1 == 2"]))
            if before and draw(st.integers(0, 4)) == 0:
                policy["strategy"] = "ALL_UPSTREAM_TASKS_COMPLETED"
            made["triggerPolicy"] = policy
            name = f"exit-handler-{index}" if draw(st.integers(0, 5)) == 0 else f"t{index}"
            tasks[name] = made
        outputs = {"parameters": {"Output": from_subtask(next(iter(tasks)))}} if tasks else {}
        return dag(tasks, outputs)

    root = make_dag(depth)
    return pipeline({}, components, root)


ENDED = {state for state in TaskState if state not in (TaskState.PENDING, TaskState.RUNNING)}


class Checked(Simulation):
    """A simulation with random outcomes that checks dependencies and limits on every step."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self.random = random.Random(seed)
        super().__init__(pipeline, lambda a: Values({"Output": "x"}) if self.random.random() < 0.7 else None)

    def _take(self, actions: Iterable[Any]) -> None:
        super()._take(actions)
        for instance in self.plan.tasks.values():
            parent = self.plan.tasks.get(instance.parent)
            if parent is None:
                continue
            if instance.iteration is None and instance.state is not TaskState.PENDING and instance.task:
                assert all(parent.children[name].state in ENDED for name in task_needs(self.pipeline, instance.task))
            if parent.kind == "loop" and parent.task and parent.task.iterator_policy.parallelism_limit:
                running = sum(child.state is TaskState.RUNNING for child in parent.children.values())
                assert running <= parent.task.iterator_policy.parallelism_limit
        assert {a.path for a in self.waiting} == {a.path for a in self.plan.outstanding() if isinstance(a, StartTask)}

    def run_to_the_end(self, *, cancel_after: tuple[int, ...] = ()) -> None:
        for step in range(10_000):
            if step in cancel_after:
                self.send(CancelRequested())
            if not self.waiting:
                return
            self.step(self.random.randrange(len(self.waiting)))
        raise AssertionError("the run does not end")


many = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@many
@given(random_pipeline(), st.integers(0, 2**32), st.lists(st.integers(0, 10), max_size=2), st.integers(0, 2))
def test_every_run_ends_runs_nothing_twice_and_resumes_from_any_prefix(
    pipeline: Pipeline, seed: int, cancel_after: list[int], retries: int
) -> None:
    simulation = Checked(pipeline, seed)
    simulation.run_to_the_end(cancel_after=tuple(cancel_after))
    for _ in range(retries):
        simulation.send(RetryRequested())
        simulation.run_to_the_end()

    assert simulation.plan.is_finished
    assert all(instance.state in ENDED for instance in simulation.plan.tasks.values())
    assert max(Counter((a.path, a.attempt) for a in simulation.started).values(), default=1) == 1
    succeeded = Counter(e.path for e in simulation.events if isinstance(e, TaskSucceeded))
    retried_dags = any(
        task.retry_policy.max_retry_count and pipeline.component_of(task).dag
        for component in (pipeline.root, *pipeline.components.values())
        for task in (component.dag.tasks.values() if component.dag else ())
    )
    if not retries and not retried_dags:
        assert max(succeeded.values(), default=0) <= 1

    ends = {instance.state for instance in simulation.plan.tasks.values()}
    if simulation.plan.state is not RunState.CANCELED:
        assert (simulation.plan.state is RunState.FAILED) == (TaskState.FAILED in ends)
        assert TaskState.CANCELED not in ends

    wire = [msgspec.json.decode(msgspec.json.encode(event), type=Event) for event in simulation.events]
    assert wire == simulation.events
    cuts = random.Random(seed)
    for cut in {0, len(wire), *(cuts.randint(0, len(wire)) for _ in range(4))}:
        resumed, live = replay(pipeline, RUN, {}, wire[:cut]), Plan(pipeline, RUN, {})
        live.begin()
        for event in wire[:cut]:
            live.apply(event)
        assert resumed.tasks == live.tasks
        assert resumed.outstanding() == live.outstanding()
        for event in wire[cut:]:
            assert resumed.apply(event) == live.apply(event)
        assert resumed.tasks == simulation.plan.tasks
        assert resumed.state is simulation.plan.state


def test_work_per_event_does_not_grow_with_the_size_of_the_run() -> None:
    def calls_per_task(size: int) -> float:
        tasks = {f"t{n}": task("op", *([f"t{n - 10}"] if n >= 10 else [])) for n in range(size)}
        plan = Plan(pipeline(tasks, OP), RUN, {})
        waiting = [a for a in plan.begin() if isinstance(a, StartTask)]
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        while waiting:
            action = waiting.pop()
            done = plan.apply(TaskSucceeded(action.path, action.attempt, Values({"Output": "x"})))
            waiting.extend(a for a in done if isinstance(a, StartTask))
        sys.setprofile(None)
        assert plan.state is RunState.SUCCEEDED
        return calls / size

    assert calls_per_task(3000) < 1.2 * calls_per_task(300)
