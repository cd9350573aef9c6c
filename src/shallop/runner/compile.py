"""From a file to the pipeline in it: compiled YAML as it is, Python source through the user's own kfp."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shallop.errors import ShallopError
from shallop.settings import Settings

__all__ = ["load_pipeline", "parse_parameters", "without_cache"]

Json = dict[str, Any]
_NO_KFP = 71
_COMPILE = """
import importlib.util, inspect, sys
path, wanted, target = sys.argv[1:]
try:
    from kfp import compiler
    from kfp.dsl import base_component, graph_component
except ImportError:
    sys.exit(71)
sys.path.insert(0, path.rpartition("/")[0] or ".")
spec = importlib.util.spec_from_file_location("pipeline_file", path)
module = importlib.util.module_from_spec(spec)
sys.modules["pipeline_file"] = module
spec.loader.exec_module(module)
every = {n: v for n, v in vars(module).items() if isinstance(v, base_component.BaseComponent)}
pipelines = {n: v for n, v in every.items() if isinstance(v, graph_component.GraphComponent)}
found = {wanted: every[wanted]} if wanted in every else {} if wanted else pipelines or every
if len(found) != 1:
    sys.exit("choose one with --pipeline: " + (", ".join(every) or "the file defines no pipeline"))
compiler.Compiler().compile(next(iter(found.values())), target)
"""


def load_pipeline(path: Path, settings: Settings, *, pipeline: str = "", python: str = "") -> Json:
    """
    Return the document of the pipeline in a file: the IR, or both documents when there is a second one.

    Args:
        pipeline: name of the function, where a Python file has several.
        python: an interpreter with kfp; empty finds one, or makes an environment with it.

    Raises:
        ShallopError: the file cannot be read or compiled.
    """
    from shallop.pipelines.package import load_package

    if not path.is_file():
        raise ShallopError(f"{path}: there is no such file; name Python source, or what 'kfp dsl compile' writes.")
    if path.suffix == ".py":
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "pipeline.yaml")
            _compile(path, pipeline, target, settings, python)
            content = target.read_bytes()
    else:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ShallopError(f"{path}: cannot be read: {error.strerror}") from error
    spec, platform = load_package(content, path.name)
    return {"pipeline_spec": spec, "platform_spec": platform} if platform else spec


def _compile(path: Path, pipeline: str, target: Path, settings: Settings, python: str) -> None:
    for interpreter in [python] if python else _interpreters(settings):
        command = [interpreter, "-W", "ignore", "-c", _COMPILE, str(path.absolute()), pipeline, str(target)]
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
        except OSError as error:
            raise ShallopError(f"--python {interpreter}: cannot be started: {error.strerror}.") from error
        if done.returncode == 0:
            return
        if done.returncode != _NO_KFP:
            raise ShallopError(f"{path}: does not compile with {interpreter}:\n{done.stderr.strip()[-3000:]}")
    raise ShallopError(f"{path}: {python} has no kfp; install it there, or leave --python out.")


def _interpreters(settings: Settings) -> Iterator[str]:
    """Yield the user's own Pythons, which may have kfp and what the file imports; last one that surely has kfp."""
    own = [f"{os.environ['VIRTUAL_ENV']}/bin/python"] if os.environ.get("VIRTUAL_ENV") else []
    for name in (*own, shutil.which("python3"), shutil.which("python")):
        if name and Path(name).exists() and Path(name).parent != Path(sys.executable).parent:
            yield name
    from shallop.embedded.kubelet.environments import Environments

    environments = Environments.of(settings)
    spec = environments.resolve("python:3.11", [], ["kfp>=2.14,<3"])
    environment = asyncio.run(environments.ensure(spec, lambda text: print(f"kfp: {text}", file=sys.stderr)))
    yield str(environment.python)


def parse_parameters(given: list[str], document: Json) -> Json:
    """
    Read ``name=value`` by the types that the pipeline declares: text as it is, anything else as JSON.

    Raises:
        ShallopError: no ``=``, or a value that is no JSON where its type needs it.
    """
    spec = document.get("pipeline_spec", document)
    declared: Mapping[str, Any] = (spec["root"].get("inputDefinitions") or {}).get("parameters") or {}
    values: Json = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ShallopError(f"--parameter {text!r}: write NAME=VALUE.")
        kind = declared.get(name, {}).get("parameterType", "STRING")
        try:
            values[name] = value if kind == "STRING" else json.loads(value)
        except ValueError:
            raise ShallopError(f"--parameter {name}: {value!r} is not of type {kind}; write it as JSON.") from None
    return values


def without_cache(document: Json) -> Json:
    """Switch caching off for every task, nested ones too."""
    spec = document.get("pipeline_spec", document)
    for component in (spec["root"], *(spec.get("components") or {}).values()):
        for task in ((component.get("dag") or {}).get("tasks") or {}).values():
            task["cachingOptions"] = {"enableCache": False}
    return document
