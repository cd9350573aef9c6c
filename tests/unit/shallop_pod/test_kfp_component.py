"""Recognising what a KFP component's command installs and runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from shallop_pod.kfp_component import PythonComponent, installs_at_run_time, recognise_component, recognise_install

FIXTURES = Path(__file__).parents[3] / ".." / "shared" / "fixtures" / "kfp"

BOOTSTRAP = """
if ! [ -x "$(command -v pip)" ]; then
    python3 -m ensurepip || python3 -m ensurepip --user || apt-get install python3-pip
fi

"""
PIP = "python3 -m pip install --quiet --no-warn-script-location"
KFP = f"{PIP} 'kfp==2.17.0' '--no-deps' 'typing-extensions>=3.7.4,<5; python_version<\"3.9\"'"
VENV = """
export PIP_DISABLE_PIP_VERSION_CHECK=1
tmp=$(mktemp -d)
python3 -m venv "$tmp/venv" --system-site-packages
. "$tmp/venv/bin/activate"
 """
RUN = (
    'program_path=$(mktemp -d)\n\nprintf "%s" "$0" > "$program_path/ephemeral_component.py"\n'
    "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main                         --component_module_path"
    '                         "$program_path/ephemeral_component.py"                         "$@"\n'
)


def install(commands: str) -> list[str]:
    return ["sh", "-c", f'{BOOTSTRAP}PIP_DISABLE_PIP_VERSION_CHECK=1 {commands} && "$0" "$@"\n']


def component(commands: str = KFP, source: str = "def f(): pass\n") -> list[str]:
    arguments = ["--executor_input", "{}", "--function_to_execute", "f"]
    return [*install(commands), "sh", "-ec", RUN, source, *arguments]


def test_the_kfp_pin_is_installed_alone() -> None:
    found = recognise_install(component())
    assert found is not None
    assert found.requirements == ()
    assert found.no_deps == ("kfp==2.17.0", 'typing-extensions>=3.7.4,<5; python_version<"3.9"')
    assert found.rest[:2] == ("sh", "-ec")


def test_packages_and_index_options_are_read() -> None:
    options = "--index-url https://a.test/simple --extra-index-url https://b.test/simple --trusted-host b.test:8443"
    found = recognise_install(
        component(f"{PIP} {options} 'numpy' 'pandas[x]>=2,<3'  &&  {PIP} {options} 'kfp==2.9.0' '--no-deps'")
    )
    assert found is not None
    assert found.requirements == ("numpy", "pandas[x]>=2,<3")
    assert found.no_deps == ("kfp==2.9.0",)
    assert found.index_url == "https://a.test/simple"
    assert found.extra_index_urls == ("https://b.test/simple",)
    assert found.trusted_hosts == ("b.test:8443",)


def test_a_url_as_trusted_host_trusts_nobody() -> None:
    found = recognise_install(component(f"{PIP} --index-url https://a.test/s --trusted-host https://a.test/s 'yapf'"))
    assert found is not None and found.trusted_hosts == ()


def test_a_virtual_environment_between_installs_changes_nothing() -> None:
    plain = recognise_install(component(f"{PIP} 'numpy==2.0.0'  &&  {KFP}"))
    with_venv = recognise_install(component(f"{PIP} 'numpy==2.0.0'  &&  {VENV}{KFP}"))
    assert with_venv == plain
    assert recognise_install(component(f"{VENV}{KFP}")) == recognise_install(component())


def test_an_installation_is_found_behind_the_launcher() -> None:
    argv = ["python3", "-m", "shallop_pod.launcher", "--task", "{}", "--", *component()]
    assert recognise_install(argv) == recognise_install(component())


@pytest.mark.parametrize(
    "commands",
    [
        f"{PIP} $PACKAGES",
        f'{PIP} "$PACKAGES"',
        f"{PIP} -r requirements.txt",
        f"{PIP} ./wheels/a.whl",
        f"{PIP} /wheels/a.whl",
        f"{PIP} -e git+https://example.test/a",
        f"{PIP} 'numpy' && apt-get install -y git",
        f"{PIP} numpy>=2",
        "curl https://example.test/install.sh",
        f"{PIP} --target /x numpy",
        f"{PIP}",
    ],
)
def test_what_only_a_shell_can_do_is_left_to_it(commands: str) -> None:
    assert recognise_install(install(commands)) is None


def test_a_python_component_is_recognised_with_its_arguments() -> None:
    found = recognise_component(component(source="SOURCE"))
    assert found is not None
    assert found.source == "SOURCE"
    assert found.executor_module == "kfp.dsl.executor_main"
    assert found.arguments == ("--executor_input", "{}", "--function_to_execute", "f")


def test_a_component_without_installation_is_recognised() -> None:
    assert recognise_component(component()[3:]) == recognise_component(component())


def test_a_component_inside_its_image_has_no_source() -> None:
    found = recognise_component(["python3", "-m", "kfp.dsl.executor_main", "--executor_input", "{}"])
    assert found is not None and found.source == "" and found.arguments == ("--executor_input", "{}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--executor_input", '{"a": 1}', "--function_to_execute", "f"],
        ["--function_to_execute", "f"],
        ["--function_to_execute=f", "--executor_input", "{}"],
        ["--func", "f", "--executor_input", "{}"],
        ["--function_to_execute", "f", "--executor_input", "-1"],
        ["--function_to_execute", "f", "--executor_input", "", "--unknown", "x"],
        ["--function_to_execute", "f", "--function_to_execute", "g"],
        ["f", "--function_to_execute", "g"],
    ],
)
def test_an_executor_reads_the_arguments_that_argparse_reads(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def parse(library: Any) -> Any:
        parser = library.ArgumentParser(description="KFP Component Executor.")
        parser.add_argument("--component_module_path", type=str, help="Path")
        parser.add_argument("--function_to_execute", type=str, required=True, help="Name")
        parser.add_argument("--executor_input", type=str, help="JSON")
        return parser.parse_known_args()

    executor: Any = ModuleType("executor")
    executor.__file__, executor.argparse = "executor.py", argparse
    executor.executor_main = lambda: read.append(parse(executor.argparse))
    monkeypatch.setitem(sys.modules, "executor", executor)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setenv("_KFP_RUNTIME", "true")
    PythonComponent("", "executor", tuple(arguments)).run("")
    assert executor.argparse is not argparse
    assert read == [parse(argparse)]


def test_other_programs_are_not_components() -> None:
    assert recognise_component(["sh", "-c", 'echo "$0"', "text"]) is None
    assert recognise_component(["python3", "train.py"]) is None
    assert recognise_component([]) is None


def test_only_commands_that_run_pip_themselves_need_a_place_for_it() -> None:
    assert installs_at_run_time(["sh", "-c", "pip install -r r.txt && python train.py"])
    assert installs_at_run_time(["python3", "-m", "pip", "install", "x"])
    assert not installs_at_run_time(component())
    assert not installs_at_run_time(["echo", "pipeline"])


def executors() -> list[tuple[str, list[str]]]:
    found = []
    for path in sorted(FIXTURES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            for name, executor in document.get("deploymentSpec", {}).get("executors", {}).items():
                container = executor.get("container", {})
                argv = [*container.get("command", []), *container.get("args", [])]
                found.append((f"{path.stem}/{name}", argv))
    return found


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the compiled pipelines of ../shared are not there")
def test_every_compiled_component_is_recognised() -> None:
    for name, argv in executors():
        text = " ".join(argv)
        assert (recognise_install(argv) is not None) == ("pip install" in text), name
        assert (recognise_component(argv) is not None) == ("executor_main" in text), name
        assert not installs_at_run_time(argv), name
