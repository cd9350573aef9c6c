"""
The planner of a run: a pure state machine over task instances.

``Plan`` owns the state of one run. Events go in, actions come out, nothing else happens: no clock, no I/O, no random
number. The same events give the same state, so a run is resumed by feeding its recorded events to ``replay``.

A task instance is known by its path, such as ``root/for-loop-1[2]/condition-1/train``: the iteration of a loop is
``[index]``. Work per event is proportional to what the event changes.

How a driver uses it::

    plan = Plan(pipeline, run, parameters)
    actions = plan.begin()                   # do them, and answer each StartTask and ImportArtifact with one event
    actions = plan.apply(TaskSucceeded("root/train", attempt=0, outputs=...))      # record the event first

    plan = replay(pipeline, run, parameters, events)      # after a restart
    actions = plan.outstanding()                          # what was asked for and has no answer yet
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shallop.pipelines.expressions import ExpressionError, compile_condition
from shallop.pipelines.inputs import (
    InputError,
    RunInfo,
    Scope,
    TaskError,
    Values,
    collected_outputs,
    dag_outputs,
    final_status,
    iteration_inputs,
    loop_items,
    resolve_importer,
    resolve_inputs,
    resolve_kubernetes,
    root_inputs,
    task_needs,
)
from shallop.pipelines.ir import Component, Pipeline, RetryPolicy, Task
from shallop.pipelines.transitions import (
    Action,
    CancelRequested,
    Event,
    FinishRun,
    ImportArtifact,
    RetryRequested,
    RunState,
    StartTask,
    StopTask,
    TaskChanged,
    TaskDropped,
    TaskFailed,
    TaskKind,
    TaskState,
    TaskSucceeded,
)
from shallop.pipelines.values import plain, task_id

__all__ = [
    "Action",
    "CancelRequested",
    "Event",
    "FinishRun",
    "ImportArtifact",
    "Plan",
    "RetryRequested",
    "RunState",
    "StartTask",
    "StopTask",
    "TaskChanged",
    "TaskDropped",
    "TaskFailed",
    "TaskInstance",
    "TaskKind",
    "TaskState",
    "TaskSucceeded",
    "replay",
]


NOTHING = Values()
_MAX_FAILED_STARTS = 2


@dataclass(slots=True)
class TaskInstance:
    """
    One task, DAG, loop or iteration of a run. Read it; only its Plan writes.

    Args:
        name: key of the task in its DAG (of an iteration: of the loop), ``root`` for the root.
        component: key in ``pipeline.components``; empty for the root.
        parent: path of the DAG or loop around it; empty for the root.
        iteration: index of a loop's item, else None.
        attempt: of the latest start; counts on when the run is retried.
        delay_s: pause before what it starts first, because a DAG around it is tried again.
        reason: why a task was skipped, omitted or canceled.
    """

    path: str
    name: str
    kind: TaskKind
    component: str
    parent: str
    iteration: int | None = None
    state: TaskState = TaskState.PENDING
    attempt: int = 0
    retry_index: int = 0
    failed_starts: int = 0
    delay_s: float = 0.0
    inputs: Values = NOTHING
    outputs: Values = NOTHING
    error: TaskError | None = None
    reason: str = ""

    id: str = field(default="", repr=False, compare=False)  # once somebody has asked for it, see Plan.id_of
    task: Task | None = field(default=None, repr=False)
    children: dict[str | int, TaskInstance] = field(default_factory=dict, repr=False, compare=False)
    results: dict[str, Values] = field(default_factory=dict, repr=False)  # outputs of children that ended well
    items: list[Any] = field(default_factory=list, repr=False)  # of a loop
    queue: deque[int] = field(default_factory=deque, repr=False)  # indices of items that are still to be started
    waiting: int = 0  # upstreams that have not ended
    open: int = 0  # children that have not ended
    shielded: bool = False  # inside an exit task: the first request to cancel does not reach it
    started: bool = False
    stopping: bool = False

    @property
    def display_name(self) -> str:
        name = (self.task.task_info.name if self.task else "") or self.name
        return name if self.iteration is None else f"{name}[{self.iteration}]"


class Plan:
    """
    State of one run; not thread-safe, owned by its driver.

    Attributes:
        tasks: path -> instance, parents before their children. Tasks of a DAG that has not started are absent.
        state: of the run.
    """

    def __init__(self, pipeline: Pipeline, run: RunInfo, parameters: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.run = run
        self.tasks: dict[str, TaskInstance] = {}
        self.state = RunState.RUNNING
        self._parameters = parameters
        self._graphs: dict[str, _Graph] = {}
        self._forced = False
        self._cancel_reason = ""
        self._starts: dict[str, int] = {}  # path -> how often it was started; survives a retry of the run
        self._issued: dict[str, StartTask | ImportArtifact] = {}
        self._actions: list[Action] = []
        self._ready: deque[TaskInstance] = deque()  # pending tasks whose upstreams have all ended
        self._touched: deque[TaskInstance] = deque()  # DAGs and loops of which a child ended

    # ---- what a driver calls

    def begin(self) -> list[Action]:
        """Start the run; called once, before any event."""
        self._begin()
        return self._settle()

    def _begin(self) -> None:
        root = self._add(TaskInstance("root", "root", TaskKind.ROOT, "", ""))
        try:
            root.inputs = root_inputs(self.pipeline, self._parameters)
        except InputError as error:
            self._finish(root, TaskState.FAILED, error=TaskError(str(error), code=3))
            return
        self._open_dag(root)

    def apply(self, event: Event) -> list[Action]:
        """
        Take in one event and decide what follows.

        An event that is late, doubled or for an unknown path changes nothing and gives no action.
        """
        match event:
            case TaskSucceeded():
                self._succeed(event)
            case TaskFailed():
                self._fail(event)
            case CancelRequested():
                self._cancel(event)
            case RetryRequested():
                self._retry()
        return self._settle()

    def outstanding(self) -> list[Action]:
        """Return what was asked of the driver and is not answered; it may have been done, in part or not at all."""
        actions: list[Action] = []
        for path, action in self._issued.items():
            actions.append(action)
            if self.tasks[path].stopping:
                actions.append(StopTask(path, action.attempt))
        if self.is_finished:
            actions.append(self._finish_action())
        return actions

    def id_of(self, instance: TaskInstance) -> str:
        """Return what a task is known by outside of the run; a UUID takes a while, and several ask for it."""
        if not instance.id:
            instance.id = task_id(self.run.run_id, instance.path)
        return instance.id

    @property
    def is_finished(self) -> bool:
        return self.state in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELED)

    # ---- events

    def _answered(self, event: TaskSucceeded | TaskFailed) -> TaskInstance | None:
        action = self._issued.get(event.path)
        if action is None or action.attempt != event.attempt:
            return None
        del self._issued[event.path]
        return self.tasks[event.path]

    def _succeed(self, event: TaskSucceeded) -> None:
        if instance := self._answered(event):
            state = TaskState.CACHED if event.cached else TaskState.SUCCEEDED
            outputs = Values(plain(event.outputs.parameters), event.outputs.artifacts)
            self._end(instance, state, outputs=outputs)

    def _fail(self, event: TaskFailed) -> None:
        instance = self._answered(event)
        if instance is None:
            return
        policy = instance.task.retry_policy if instance.task else RetryPolicy()
        if instance.stopping:
            self._end(instance, TaskState.CANCELED, reason="The run was terminated.")
        elif event.transient and instance.failed_starts < _MAX_FAILED_STARTS:
            # Not the component's doing: this is no try of the task's own retry policy.
            instance.error = event.error
            instance.failed_starts += 1
            self._launch(instance, retry_index=instance.retry_index)
        elif event.retryable and instance.retry_index < policy.max_retry_count:
            instance.error = event.error
            retry = instance.retry_index + 1
            self._launch(instance, retry_index=retry, delay_s=policy.delay_s(retry))
        else:
            self._end(instance, TaskState.FAILED, error=event.error)

    def _cancel(self, event: CancelRequested) -> None:
        if self.is_finished:
            return
        self._cancel_reason = self._cancel_reason or event.reason or "The run was terminated by user."
        self._forced = self.state is RunState.CANCELING
        self.state = RunState.CANCELING
        for path, action in self._issued.items():
            instance = self.tasks[path]
            if self._is_canceled(instance) and not instance.stopping:
                instance.stopping = True
                self._actions.append(StopTask(path, action.attempt))

    def _is_canceled(self, instance: TaskInstance) -> bool:
        return self.state is RunState.CANCELING and (self._forced or not instance.shielded)

    def _retry(self) -> None:
        if self.state not in (RunState.FAILED, RunState.CANCELED):
            return
        self.state, self._forced, self._cancel_reason = RunState.RUNNING, False, ""
        root = self.tasks["root"]
        if root.started:
            self._reopen(root)
        else:
            self.tasks.clear()
            self._begin()

    # ---- decisions

    def _settle(self) -> list[Action]:
        while self._touched or self._ready:
            if self._touched:
                self._look_after(self._touched.popleft())
            else:
                self._decide(self._ready.popleft())
        actions, self._actions = self._actions, []
        return actions

    def _decide(self, instance: TaskInstance) -> None:
        """Start a task whose upstreams have all ended, or end it as skipped, omitted, canceled or failed."""
        parent, task = self.tasks[instance.parent], _task_of(instance)
        upstreams = [parent.children[name] for name in self._graph(parent).needs[instance.name]]
        if blocked := self._blocked(instance, task, upstreams):
            self._end(instance, blocked[0], reason=blocked[1])
            return
        try:
            inputs = resolve_inputs(self._scope(instance), task, self.pipeline.component_of(task))
            is_met = not task.trigger_policy.condition or compile_condition(task.trigger_policy.condition).evaluate(
                inputs.parameters
            )
        except (InputError, ExpressionError) as error:
            self._end(instance, TaskState.FAILED, error=TaskError(str(error), code=3))
            return
        instance.inputs = inputs
        if is_met:
            self._start(instance)
        else:
            self._end(instance, TaskState.SKIPPED, reason=f"Condition is false: {task.trigger_policy.condition}")

    def _blocked(
        self, instance: TaskInstance, task: Task, upstreams: list[TaskInstance]
    ) -> tuple[TaskState, str] | None:
        if self._is_canceled(instance):
            return TaskState.CANCELED, "The run was terminated."
        if task.runs_after_any_end:
            # An exit task cleans up after its body; where the body never ran there is nothing to clean up.
            if self.state is RunState.CANCELING and not any(upstream.started for upstream in upstreams):
                return TaskState.CANCELED, "The run was terminated before the tasks that this one follows."
            return None
        for upstream in upstreams:
            if upstream.state in (TaskState.FAILED, TaskState.OMITTED, TaskState.CANCELED):
                return TaskState.OMITTED, f"Upstream task '{upstream.name}' ended {upstream.state}."
        for upstream in upstreams:
            if upstream.state is TaskState.SKIPPED:
                return TaskState.SKIPPED, f"Upstream task '{upstream.name}' was skipped."
        return None

    def _start(self, instance: TaskInstance) -> None:
        try:
            if instance.kind is TaskKind.LOOP:
                instance.items = loop_items(_task_of(instance), instance.inputs)
                instance.queue.extend(range(len(instance.items)))
                instance.open = len(instance.items)
                self._mark_running(instance)
                self._touched.append(instance)
            elif instance.kind is TaskKind.DAG:
                self._open_dag(instance)
            else:
                self._launch(instance, delay_s=instance.delay_s)
        except InputError as error:
            self._end(instance, TaskState.FAILED, error=TaskError(str(error), code=3))

    def _open_dag(self, instance: TaskInstance) -> None:
        graph = self._graph(instance)
        instance.open = len(graph.needs)
        self._mark_running(instance)
        for name in graph.needs:
            self._add_child(instance, name, waiting=len(graph.needs[name]))
        if not graph.needs:
            self._touched.append(instance)

    def _add_child(self, dag: TaskInstance, name: str, waiting: int) -> TaskInstance:
        task = self._graph(dag).tasks[name]
        child = TaskInstance(
            f"{dag.path}/{name}", name, self._kind(task), task.component_ref.name, dag.path, task=task, waiting=waiting
        )
        child.shielded = dag.shielded or task.is_exit_task
        child.delay_s = 0.0 if waiting else dag.delay_s
        self._add(child)
        dag.children[name] = child
        if not waiting:
            self._ready.append(child)
        return child

    def _launch(self, instance: TaskInstance, retry_index: int = 0, delay_s: float = 0.0) -> None:
        task, component = _task_of(instance), self.pipeline.components[instance.component]
        scope = self._scope(instance)
        attempt = self._starts.get(instance.path, 0)
        executor = self.pipeline.executor_of(component)
        action: StartTask | ImportArtifact
        if executor.importer:
            importer = resolve_importer(scope, executor.importer, component, instance.inputs)
            action = ImportArtifact(
                path=instance.path,
                attempt=attempt,
                uuid=scope.task_uuid,
                task_name=instance.name,
                component=instance.component,
                uri=importer.uri,
                type=executor.importer.type_schema,
                metadata=importer.metadata,
                reimport=executor.importer.reimport,
                download_to_workspace=executor.importer.download_to_workspace,
            )
        else:
            config = self.pipeline.kubernetes.get(component.executor_label, {})
            action = StartTask(
                path=instance.path,
                attempt=attempt,
                retry_index=retry_index,
                delay_s=delay_s,
                uuid=scope.task_uuid,
                task_name=instance.name,
                component=instance.component,
                executor_label=component.executor_label,
                inputs=instance.inputs,
                kubernetes=resolve_kubernetes(scope, config),
                enable_cache=task.caching_options.enable_cache,
                cache_key=task.caching_options.cache_key,
            )
        instance.attempt, instance.retry_index = attempt, retry_index
        self._starts[instance.path] = attempt + 1
        self._issued[instance.path] = action
        self._mark_running(instance)
        self._actions.append(action)

    # ---- ends

    def _end(
        self,
        instance: TaskInstance,
        state: TaskState,
        *,
        outputs: Values | None = None,
        error: TaskError | None = None,
        reason: str = "",
    ) -> None:
        self._finish(instance, state, outputs=outputs, error=error, reason=reason)
        parent = self.tasks[instance.parent]
        parent.open -= 1
        if parent.kind is TaskKind.LOOP:
            self._touched.append(parent)
            return
        if state in (TaskState.SUCCEEDED, TaskState.CACHED):
            parent.results[instance.name] = instance.outputs
        for name in self._graph(parent).dependents[instance.name]:
            dependent = parent.children[name]
            dependent.waiting -= 1
            if dependent.waiting == 0:
                self._ready.append(dependent)
        if parent.open == 0:
            self._touched.append(parent)

    def _finish(
        self,
        instance: TaskInstance,
        state: TaskState,
        *,
        outputs: Values | None = None,
        error: TaskError | None = None,
        reason: str = "",
    ) -> None:
        instance.state, instance.error, instance.reason = state, error, reason
        instance.outputs = outputs or NOTHING
        instance.stopping = False
        self._actions.append(TaskChanged(instance.path, state))
        if instance.kind is TaskKind.ROOT:
            if self.state is RunState.CANCELING:
                self.state = RunState.CANCELED
            else:
                self.state = RunState.FAILED if state is TaskState.FAILED else RunState.SUCCEEDED
            self._actions.append(self._finish_action())

    def _finish_action(self) -> FinishRun:
        root = self.tasks["root"]
        error = TaskError(self._cancel_reason, code=1) if self.state is RunState.CANCELED else root.error
        return FinishRun(self.state, root.outputs, error)

    def _look_after(self, instance: TaskInstance) -> None:
        """Start the next iterations of a loop; end a loop or DAG whose children have all ended."""
        if instance.state is not TaskState.RUNNING:
            return
        if instance.kind is TaskKind.LOOP:
            self._start_iterations(instance)
        if instance.open:
            return
        children = instance.children.values()
        instance.delay_s = 0.0
        failed = next((child for child in children if child.state is TaskState.FAILED), None)
        if failed and self._may_retry(instance):
            retry = instance.retry_index + 1
            self._reopen(instance, delay_s=_task_of(instance).retry_policy.delay_s(retry))
            instance.retry_index = retry
            return
        if failed:
            message = failed.error.message if failed.error else ""
            code = failed.error.code if failed.error else 13
            error = TaskError(f"Task '{failed.display_name}' failed: {message}", code=code)
            ending: dict[str, Any] = {"state": TaskState.FAILED, "error": error}
        elif any(child.state is TaskState.CANCELED for child in children):
            ending = {"state": TaskState.CANCELED, "reason": "The run was terminated."}
        else:
            ending = {"state": TaskState.SUCCEEDED, "outputs": self._outputs(instance)}
        if instance.kind is TaskKind.ROOT:
            self._finish(instance, **ending)
        else:
            self._end(instance, **ending)

    def _may_retry(self, dag: TaskInstance) -> bool:
        """Say whether a failed DAG, or iteration of a loop, is tried again; a loop leaves that to its iterations."""
        policy = dag.task.retry_policy if dag.task else RetryPolicy()
        tries_left = dag.kind is TaskKind.DAG and dag.retry_index < policy.max_retry_count
        return tries_left and not self._is_canceled(dag)

    def _start_iterations(self, loop: TaskInstance) -> None:
        if self._is_canceled(loop):
            loop.open -= len(loop.queue)
            loop.queue.clear()
            return
        task = _task_of(loop)
        limit = task.iterator_policy.parallelism_limit
        while loop.queue and (limit <= 0 or loop.open - len(loop.queue) < limit):
            index = loop.queue.popleft()
            earlier = loop.children.get(index)
            if earlier and earlier.kind is TaskKind.DAG and earlier.started:
                self._reopen(earlier, loop.delay_s)
                continue
            kind = self._kind(task, iteration=True)
            child = TaskInstance(f"{loop.path}[{index}]", loop.name, kind, loop.component, loop.path, index, task=task)
            child.shielded, child.delay_s = loop.shielded, loop.delay_s
            loop.children[index] = self._add(child)
            try:
                child.inputs = iteration_inputs(task, self.pipeline.component_of(task), loop.inputs, loop.items[index])
            except InputError as error:
                self._end(child, TaskState.FAILED, error=TaskError(str(error), code=3))
                continue
            self._start(child)

    def _outputs(self, instance: TaskInstance) -> Values:
        component = self._component(instance)
        if instance.kind is TaskKind.LOOP:
            ordered = [instance.children[index].outputs for index in range(len(instance.items))]
            return collected_outputs(component, ordered)
        return dag_outputs(component, instance.results)

    # ---- retry of a run, or of a DAG with a retry policy

    def _reopen(self, instance: TaskInstance, delay_s: float = 0.0) -> None:
        """Run again what did not end well inside a DAG or loop, and what depends on it; keep the rest."""
        instance.retry_index, instance.delay_s = 0, delay_s
        instance.error, instance.reason, instance.outputs = None, "", NOTHING
        self._mark_running(instance)
        self._touched.append(instance)
        if instance.kind is TaskKind.LOOP:
            again = [index for index in range(len(instance.items)) if not self._is_kept(instance.children.get(index))]
            instance.queue, instance.open = deque(again), len(again)
            return
        graph = self._graph(instance)
        again_names = graph.with_dependents(name for name in graph.needs if not self._is_kept(instance.children[name]))
        instance.open = len(again_names)
        for name in again_names:
            child = instance.children[name]
            instance.results.pop(name, None)
            waiting = sum(need in again_names for need in graph.needs[name])
            ended_badly = child.state in (TaskState.FAILED, TaskState.CANCELED)
            if not waiting and child.started and ended_badly and child.kind in (TaskKind.DAG, TaskKind.LOOP):
                self._reopen(child, delay_s)
                continue
            self._drop_children(child)
            fresh = self._add_child(instance, name, waiting)
            self._actions.append(TaskChanged(fresh.path, fresh.state))

    @staticmethod
    def _is_kept(instance: TaskInstance | None) -> bool:
        return instance is not None and instance.state in (TaskState.SUCCEEDED, TaskState.CACHED, TaskState.SKIPPED)

    def _drop_children(self, instance: TaskInstance) -> None:
        for child in instance.children.values():
            self._drop_children(child)
            del self.tasks[child.path]
            self._actions.append(TaskDropped(child.path))

    # ---- small things

    def _add(self, instance: TaskInstance) -> TaskInstance:
        self.tasks[instance.path] = instance
        return instance

    def _mark_running(self, instance: TaskInstance) -> None:
        instance.state = TaskState.RUNNING
        instance.started = True
        self._actions.append(TaskChanged(instance.path, TaskState.RUNNING))

    def _component(self, instance: TaskInstance) -> Component:
        return self.pipeline.components[instance.component] if instance.component else self.pipeline.root

    def _kind(self, task: Task, *, iteration: bool = False) -> TaskKind:
        if task.is_loop and not iteration:
            return TaskKind.LOOP
        component = self.pipeline.component_of(task)
        if component.dag is not None:
            return TaskKind.DAG
        return TaskKind.IMPORTER if self.pipeline.executor_of(component).importer else TaskKind.CONTAINER

    def _graph(self, instance: TaskInstance) -> _Graph:
        graph = self._graphs.get(instance.component)
        if graph is None:
            graph = self._graphs[instance.component] = _Graph.of(self.pipeline, self._component(instance))
        return graph

    def _scope(self, instance: TaskInstance) -> Scope:
        """Build what the inputs of a task may refer to; those of an iteration see what the loop sees."""
        dag = self.tasks[instance.parent]
        if dag.kind is TaskKind.LOOP:
            dag = self.tasks[dag.parent]

        def final_status_of(producer: str) -> dict[str, Any]:
            child = dag.children[producer]
            return final_status(self.run, producer, child.state, child.error)

        return Scope(
            run=self.run,
            task_name=instance.name,
            task_uuid=self.id_of(instance),
            inputs=dag.inputs,
            results=dag.results,
            final_status=final_status_of,
        )


@dataclass(frozen=True, slots=True)
class _Graph:
    """Who waits for whom in one DAG component; all maps in the order of the document."""

    tasks: Mapping[str, Task]
    needs: Mapping[str, tuple[str, ...]]
    dependents: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, pipeline: Pipeline, component: Component) -> _Graph:
        tasks = component.dag.tasks if component.dag else {}
        needs = {name: task_needs(pipeline, task) for name, task in tasks.items()}
        dependents: dict[str, list[str]] = {name: [] for name in tasks}
        for name, producers in needs.items():
            for producer in producers:
                dependents[producer].append(name)
        return cls(tasks, needs, {name: tuple(names) for name, names in dependents.items()})

    def with_dependents(self, names: Iterable[str]) -> dict[str, None]:
        found: dict[str, None] = {}
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in found:
                found[name] = None
                todo.extend(self.dependents[name])
        return {name: None for name in self.needs if name in found}


def _task_of(instance: TaskInstance) -> Task:
    if instance.task is None:
        raise LookupError(f"{instance.path} is the root: it has no task")
    return instance.task


def replay(pipeline: Pipeline, run: RunInfo, parameters: Mapping[str, Any], events: Iterable[Event]) -> Plan:
    """Rebuild the state of a run from its recorded events; ask ``outstanding()`` what is left to do."""
    plan = Plan(pipeline, run, parameters)
    plan.begin()
    for event in events:
        plan.apply(event)
    return plan
