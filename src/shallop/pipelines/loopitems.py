"""
Items of loops within longer texts, such as ``f"{outer}-{inner.name}"``.

An item that is an argument by itself is passed by the compiler from its loop to the task, and a field of it is taken by
``parseJson``. For an item within a text kfp 2.17 asks the surroundings of the loop for it instead, or the body for an
input that it does not have: nothing is there, and upstream the run fails. What is meant is in the name: the item of a
loop is ``ITEM``, the ``itemInput`` of its iterator, and a field of it is ``ITEM-subvar-FIELD``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from shallop.pipelines.ir import Component, Dag, InputParameter, ParameterDef, Task

__all__ = ["pass_loop_items"]

_FIELD = "-subvar-"


def pass_loop_items(root: Component, components: Mapping[str, Component]) -> tuple[Component, dict[str, Component]]:
    """
    Let items of loops come to where they are used.

    Returns:
        Root and components; the same objects where nothing was missing.
    """
    passing = _Passing(root, components)
    root, _ = passing.repair(root, set(root.input_definitions.parameters), {})
    return root, passing.components


class _Repaired(NamedTuple):
    component: Component
    wanted: set[str]  # items that the surroundings have to give


class _Passing:
    def __init__(self, root: Component, components: Mapping[str, Component]) -> None:
        self.components = dict(components)
        dags = [component.dag for component in (root, *components.values()) if component.dag is not None]
        # One that is used twice, or contains itself, is left alone: groups of the compiler are used once.
        self._uses = Counter(task.component_ref.name for dag in dags for task in dag.tasks.values())

    def repair(self, component: Component, given: set[str], items: Mapping[str, ParameterDef]) -> _Repaired:
        """
        Correct the tasks of a DAG and of all that is in it.

        Args:
            given: inputs of ``component`` that have a value.
            items: of the loops around its tasks, with their declarations.
        """
        if component.dag is None:
            return _Repaired(component, set())
        wanted: set[str] = set()
        tasks: dict[str, Task] = {}
        for name, task in component.dag.tasks.items():
            inputs: dict[str, InputParameter] = {}
            for key, source in task.inputs.parameters.items():
                if not self._leads_nowhere(component.dag, given, key, source):
                    inputs[key] = source
                elif item := _item_of(key, items):
                    inputs[key] = _from_item(key, item)
                    wanted.add(item)
            for item in self._repair_body(task, set(inputs), items):
                inputs[item] = _from_item(item, item)
                wanted.add(item)
            changed = inputs != task.inputs.parameters
            tasks[name] = replace(task, inputs=replace(task.inputs, parameters=inputs)) if changed else task
        if tasks != component.dag.tasks:
            component = replace(component, dag=replace(component.dag, tasks=tasks))
        return _Repaired(component, wanted - given)

    def _repair_body(self, task: Task, given: set[str], items: Mapping[str, ParameterDef]) -> set[str]:
        """Correct what a task consists of; return the items that the task has to pass to it."""
        name = task.component_ref.name
        body = self.components.get(name)
        if body is None or body.dag is None or self._uses[name] > 1:
            return set()
        declared = dict(body.input_definitions.parameters)
        item = task.parameter_iterator.item_input if task.parameter_iterator else ""
        if item in declared:
            items, given = {**items, item: declared[item]}, given | {item}
        # What only the compiler made up, and nobody gives.
        lost = {key for key in declared if _is_item(key) and key not in given and not declared[key].is_optional}
        body, wanted = self.repair(body, set(declared) - lost, items)
        kept = {key: value for key, value in declared.items() if key not in lost} | {key: items[key] for key in wanted}
        if kept != declared:
            body = replace(body, input_definitions=replace(body.input_definitions, parameters=kept))
        self.components[name] = body
        return wanted

    def _leads_nowhere(self, dag: Dag, given: set[str], key: str, source: InputParameter) -> bool:
        if not _is_item(key):
            return False
        if source.task_output_parameter is None:
            return source.component_input_parameter is not None and source.component_input_parameter not in given
        producer = dag.tasks.get(source.task_output_parameter.producer_task)
        made_by = self.components.get(producer.component_ref.name) if producer else None
        key = source.task_output_parameter.output_parameter_key
        return made_by is not None and key not in made_by.output_definitions.parameters


def _is_item(key: str) -> bool:
    return key.startswith("pipelinechannel--") and "loop-item" in key


def _item_of(key: str, items: Mapping[str, ParameterDef]) -> str | None:
    """Return the item that an input stands for, or has a field of; the innermost where several would do."""
    return next((item for item in reversed(list(items)) if key == item or key.startswith(f"{item}{_FIELD}")), None)


def _from_item(key: str, item: str) -> InputParameter:
    field = key.removeprefix(f"{item}{_FIELD}") if key != item else ""
    selector = f'parseJson(string_value)["{field}"]' if field else ""
    return InputParameter(component_input_parameter=item, parameter_expression_selector=selector)
