"""
What a KFP component's command means: which packages it installs, and which Python function it runs.

KFP compiles a Python function into ``sh -c INSTALL sh -ec RUN SOURCE --executor_input JSON --function_to_execute F``.
Both scripts are recognised by what they do, not by their text, so that no pip and no shell runs: the packages are part
of the environment, the function runs in the launcher. What is not recognised is run as it is.

Source: kfp 2.17.0 ``dsl/component_factory.py``; shapes since kfp 2.1.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import re
import shlex
import sys
import types
from dataclasses import dataclass, field
from typing import Any, Sequence  # noqa: UP035  environments may be Python 3.9

__all__ = ["Install", "PythonComponent", "installs_at_run_time", "recognise_component", "recognise_install"]

_SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash", "/usr/bin/sh", "/usr/bin/bash"}
_BOOTSTRAP = re.compile(r'if ! \[ -x "\$\(command -v pip3?\)" \]; then\n.*?\nfi\n', re.DOTALL)
_VENV = (
    re.compile(r"export PIP_[A-Z_]+=\S*"),
    re.compile(r"tmp=\$\(mktemp -d\)"),
    re.compile(r'python3? -m venv "\$tmp/venv" --system-site-packages'),
    re.compile(r'\. "\$tmp/venv/bin/activate"'),
)
_CONTINUE = re.compile(r'&&\s*"\$0" "\$@"\s*$')
_FLAGS = re.compile(
    r"--quiet|-q|--verbose|-v|--no-warn-script-location|--no-cache-dir|--disable-pip-version-check|--upgrade|-U|--user|"
    r"--no-input|--break-system-packages|--prefer-binary|--no-color|--require-virtualenv"
)
_FLAGS_WITH_VALUE = re.compile(r"--root-user-action|--timeout|--default-timeout|--retries|--progress-bar|--cache-dir")
_RUN = re.compile(
    r"\s*program_path=\$\(mktemp -d\)\s+"
    r'printf "%s" "\$0" > "\$program_path/ephemeral_component\.py"\s+'
    r"(?:_KFP_RUNTIME=true\s+)?python3? -m (?P<module>kfp\.(?:dsl|components)\.executor_main)\s+"
    r'--component_module_path\s+"\$program_path/ephemeral_component\.py"\s+"\$@"\s*'
)
# Compiled before a fork, or each child would compile them again (0.1 ms a pattern).
_SCRIPT_FLAG = re.compile(r"-e?c")
_PYTHON = re.compile(r"python3?")
_PIP = re.compile(r"pip3?")
_PIP_VARIABLE = re.compile(r"PIP_[A-Z_]+=\S*")
_NAME_START = re.compile(r"[A-Za-z0-9]")
_HOST = re.compile(r"[A-Za-z0-9.-]+(:\d+)?")
_SINGLE_QUOTED = re.compile(r"'[^']*'")
_DOUBLE_QUOTED = re.compile(r'"[^"]*"')
_EXPANDED = re.compile(r"[$`]")
_SPECIAL = re.compile(r"[*?|<>&()]")
_IN_IMAGE = re.compile(r"python3? -m kfp\.(dsl|components)\.executor_main")
_OPTION = re.compile(r"--[a-z_]+")
_PIP_INSTALL = re.compile(r"\bpip3? +install\b")


@dataclass(frozen=True)
class Install:
    """
    What ``pip install`` commands in front of a component ask for.

    Args:
        requirements: installed with what they need, in order of mention.
        no_deps: installed alone (``--no-deps``), after the others and in their place.
        index_url: empty for the machine's own.
        trusted_hosts: ``host`` or ``host:port``, not verified over TLS.
        pre: pre-releases may be chosen.
        rest: the argv that follows the installation.
    """

    requirements: tuple[str, ...] = ()
    no_deps: tuple[str, ...] = ()
    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    pre: bool = False
    rest: tuple[str, ...] = ()


@dataclass
class _Parsed:
    requirements: list[str] = field(default_factory=list)
    no_deps: list[str] = field(default_factory=list)
    index_url: str = ""
    lists: dict[str, list[str]] = field(default_factory=lambda: {"extra": [], "links": [], "trusted": []})
    pre: bool = False


_VALUE_LISTS = {
    "--extra-index-url": "extra",
    "--find-links": "links",
    "-f": "links",
    "--trusted-host": "trusted",
}


def recognise_install(argv: Sequence[str]) -> Install | None:
    """Return what ``sh -c INSTALL ...`` anywhere in ``argv`` installs; None without a script that we understand."""
    for index in range(len(argv) - 2):
        if argv[index] in _SHELLS and _SCRIPT_FLAG.fullmatch(argv[index + 1]):
            parsed = _parse_script(argv[index + 2])
            if parsed is not None:
                return Install(
                    tuple(parsed.requirements),
                    tuple(parsed.no_deps),
                    parsed.index_url,
                    tuple(parsed.lists["extra"]),
                    tuple(parsed.lists["links"]),
                    tuple(host for host in parsed.lists["trusted"] if _is_host(host)),
                    parsed.pre,
                    tuple(argv[index + 3 :]),
                )
    return None


def installs_at_run_time(argv: Sequence[str]) -> bool:
    """Say whether a command calls pip in a way that only running it can follow."""
    return recognise_install(argv) is None and any(_PIP_INSTALL.search(text) for text in (*argv, " ".join(argv[:8])))


def _is_host(value: str) -> bool:
    # kfp passes whole URLs by default; for pip these name no host, so certificates are still verified. So do we.
    return _HOST.fullmatch(value) is not None


@functools.lru_cache(maxsize=256)
def _parse_script(script: str) -> _Parsed | None:
    """Read a script; the answer, which many components share, is not to be changed."""
    text = _BOOTSTRAP.sub("", script).strip()
    if not _CONTINUE.search(text) or "pip" not in text:
        return None
    text = _CONTINUE.sub("", text)
    parsed = _Parsed()
    for command in _split(text):
        if any(pattern.fullmatch(command) for pattern in _VENV):
            continue
        if not _parse_pip(command, parsed):
            return None
    return parsed if parsed.requirements or parsed.no_deps else None


def _split(text: str) -> list[str]:
    """Cut a script into commands at newlines, ``;`` and ``&&`` outside quotes."""
    commands = [""]
    quote = ""
    for position, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[position - 1] != "\\" else quote
        elif char in "'\"":
            quote = char
        elif char in "\n;" or (char == "&" and text[position : position + 2] == "&&"):
            commands.append("")
            continue
        elif char == "&" and text[position - 1] == "&":
            continue
        commands[-1] += char
    return [command.strip() for command in commands if command.strip()]


def _parse_pip(command: str, into: _Parsed) -> bool:
    if not _is_literal(command):
        return False
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    while words and _PIP_VARIABLE.fullmatch(words[0]):
        words = words[1:]
    if not words:
        return True
    if _PYTHON.fullmatch(words[0]) and words[1:3] == ["-m", "pip"]:
        words = words[2:]
    if not _PIP.fullmatch(words[0]) or words[1:2] != ["install"]:
        return False
    return _parse_pip_arguments(words[2:], into)


def _parse_pip_arguments(words: list[str], into: _Parsed) -> bool:
    packages: list[str] = []
    no_deps = False
    position = 0
    while position < len(words):
        word, equals, value = words[position], "", ""
        if word.startswith("--"):
            word, equals, value = word.partition("=")
        position += 1
        if word == "--no-deps":
            no_deps = True
        elif word == "--pre":
            into.pre = True
        elif _FLAGS.fullmatch(word):
            continue
        elif _FLAGS_WITH_VALUE.fullmatch(word) or word in _VALUE_LISTS or word in ("--index-url", "-i"):
            if not equals:
                if position == len(words):
                    return False
                value = words[position]
                position += 1
            if word in ("--index-url", "-i"):
                into.index_url = value
            elif word in _VALUE_LISTS and value not in into.lists[_VALUE_LISTS[word]]:
                into.lists[_VALUE_LISTS[word]].append(value)
        elif word.startswith("-") or not _is_name_or_url(words[position - 1]):
            return False
        else:
            packages.append(words[position - 1])
    target = into.no_deps if no_deps else into.requirements
    target.extend(package for package in packages if package not in target)
    return bool(packages)


def _is_name_or_url(requirement: str) -> bool:
    """Not a path inside the image."""
    return _NAME_START.match(requirement) is not None


def _is_literal(command: str) -> bool:
    """Say whether a shell would take the words as they are written: nothing expanded, nothing redirected."""
    unquoted = _SINGLE_QUOTED.sub("", command)
    return not _EXPANDED.search(unquoted) and not _SPECIAL.search(_DOUBLE_QUOTED.sub("", unquoted))


@dataclass(frozen=True)
class PythonComponent:
    """
    A KFP Python component.

    Args:
        source: the module's text; empty when the module is part of the image (``kfp_config.ini`` names it).
        executor_module: what KFP would run with ``python3 -m``.
        arguments: its command line, ``--executor_input`` and ``--function_to_execute`` among it.
    """

    source: str
    executor_module: str
    arguments: tuple[str, ...]

    def run(self, source_path: str) -> None:
        """Run the function in this process, its module written to ``source_path``; raises what the function raises."""
        os.environ["_KFP_RUNTIME"] = "true"
        sys.dont_write_bytecode = True  # the component's module is imported once; its folder goes away
        arguments = list(self.arguments)
        if self.source:
            with open(source_path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(self.source)
            arguments = ["--component_module_path", source_path, *arguments]
        executor: Any = importlib.import_module(self.executor_module)
        sys.argv = [executor.__file__, *arguments]
        if getattr(executor, "argparse", None) is argparse:
            executor.argparse = types.SimpleNamespace(**{**vars(argparse), "ArgumentParser": _Arguments})
        executor.executor_main()


class _Arguments:
    """
    What KFP's executor uses of argparse, without the messages that argparse prepares each time (0.4 ms).

    It reads pairs of an option and its text; everything else is left to argparse.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._options: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def add_argument(self, *names: str, **options: Any) -> None:
        self._options.append((names, options))

    def parse_known_args(self) -> tuple[argparse.Namespace, list[str]]:
        given = dict(zip(sys.argv[1::2], sys.argv[2::2]))  # noqa: B905  environments may be Python 3.9
        if self._understands() and self._fit(given):
            return argparse.Namespace(**{names[0][2:]: given.get(names[0]) for names, _ in self._options}), []
        return self._parser().parse_known_args()

    def __getattr__(self, name: str) -> Any:
        # Whatever else another version of the executor asks of it.
        return getattr(self._parser(), name)

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(**self._settings)
        for names, options in self._options:
            parser.add_argument(*names, **options)
        return parser

    def _understands(self) -> bool:
        """Say whether the options are of the simplest kind."""
        return self._settings.keys() <= {"description"} and all(
            len(names) == 1
            and _OPTION.fullmatch(names[0])
            and options.keys() <= {"type", "required", "help"}
            and options.get("type", str) is str
            for names, options in self._options
        )

    def _fit(self, given: dict[str, str]) -> bool:
        """Say whether each was given once with a text that is no option, and nothing else, and nothing is missing."""
        known = {names[0] for names, _ in self._options}
        return (
            len(sys.argv) == 1 + 2 * len(given)
            and all(name in known and text[:1] not in ("", "-") for name, text in given.items())
            and all(names[0] in given or not options.get("required") for names, options in self._options)
        )


def recognise_component(argv: Sequence[str]) -> PythonComponent | None:
    """Return the Python component that ``argv`` runs, behind its installation if any; None for another program."""
    install = recognise_install(argv)
    words = list(argv if install is None else install.rest)
    if len(words) > 3 and words[0] in _SHELLS and _SCRIPT_FLAG.fullmatch(words[1]):
        match = _RUN.fullmatch(words[2])
        return match and PythonComponent(words[3], match["module"], tuple(words[4:]))
    if _IN_IMAGE.fullmatch(" ".join(words[:3])):
        return PythonComponent("", words[2], tuple(words[3:]))
    return None
