"""Which environment a container needs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from shallop.embedded.kubelet.environments import (
    Environments,
    EnvironmentSpec,
    essential_lines,
    is_network_error,
    is_unreachable,
)
from shallop.embedded.kubelet.images import ImageTable, add_image
from shallop.embedded.kubelet.interpreters import (
    Interpreter,
    choose_interpreter,
    find_interpreters,
    is_optimised,
    own_version,
)
from shallop.embedded.kubelet.pip_settings import (
    PackageOptions,
    machine_options,
    pip_config_files,
    read_pip_settings,
    uv_environment,
)

OWN = own_version()
INSTALL = 'PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip install {} && "$0" "$@"\n'


def environments(folder: Path, **environ: str) -> Environments:
    images = ImageTable(folder / "images.yaml")
    return Environments(folder / "envs", images, {"HOME": str(folder), "PIP_CONFIG_FILE": "/dev/null", **environ})


def resolve(folder: Path, packages: str = "", *requirements: str, image: str = f"python:{OWN}") -> EnvironmentSpec:
    argv = ["sh", "-c", INSTALL.format(packages), "echo"] if packages else ["echo"]
    return environments(folder).resolve(image, argv, requirements)


def test_equal_needs_are_one_environment(tmp_path: Path) -> None:
    one = resolve(tmp_path, "numpy 'pandas>=2'")
    assert one.key == resolve(tmp_path, "'pandas>=2'  --quiet numpy", image=f"python:{OWN}-slim").key
    assert one.requirements == ("numpy", "pandas>=2")


def test_different_needs_are_different_environments(tmp_path: Path) -> None:
    specs = [
        resolve(tmp_path),
        resolve(tmp_path, "numpy"),
        resolve(tmp_path, "numpy --no-deps"),
        resolve(tmp_path, "numpy==2.0"),
        resolve(tmp_path, "--index-url https://a.test/simple numpy"),
        resolve(tmp_path, image="alpine"),
    ]
    assert len({spec.key for spec in specs}) == len(specs)


def test_indexes_do_not_matter_where_nothing_is_installed(tmp_path: Path) -> None:
    plain = environments(tmp_path).resolve("python", [])
    other = environments(tmp_path, PIP_INDEX_URL="https://a.test/simple").resolve("python", [])
    assert plain.key == other.key and plain.options != other.options


def test_a_pods_requirements_replace_those_of_its_image(tmp_path: Path) -> None:
    spec = resolve(tmp_path, "", "Scikit_Learn==1.5.2", "requests", image="kserve/sklearnserver:v0.15")
    names = [requirement for requirement in spec.requirements if "scikit" in requirement.lower()]
    assert names == ["Scikit_Learn==1.5.2"]
    assert "requests" in spec.requirements and any(r.startswith("pandas") for r in spec.requirements)
    assert spec.command == ("python3", "-m", "shallop_pod.modelserver")


def test_a_users_image_brings_its_requirements(tmp_path: Path) -> None:
    add_image(tmp_path / "images.yaml", "acme/train", python=OWN, requirements=["numpy==2.0"])
    assert resolve(tmp_path, "numpy==2.1", image="acme/train:7").requirements == ("numpy==2.1",)
    assert resolve(tmp_path, image="acme/train:7").requirements == ("numpy==2.0",)


def test_a_command_that_runs_pip_itself_gets_pip(tmp_path: Path) -> None:
    spec = environments(tmp_path).resolve("python", ["sh", "-c", "pip install -r r.txt && python a.py"])
    assert spec.installs_at_run_time and spec.requirements == ("pip",)


def test_a_missing_interpreter_is_replaced_and_said(tmp_path: Path) -> None:
    spec = environments(tmp_path, PATH="").resolve("python:3.99", [])
    assert spec.python != "3.99"
    (warning,) = spec.warnings
    assert warning.startswith("image 'python:3.99': Python 3.99 is not on this machine;")
    assert "uv python install 3.99" in warning
    assert resolve(tmp_path).warnings == ()


def test_the_nearest_interpreter_is_chosen_newer_first() -> None:
    available = {version: Interpreter(version, f"/{version}") for version in ("3.9", "3.10", "3.12")}
    assert choose_interpreter("3.11", available)[0].version == "3.12"
    assert choose_interpreter("3.13", available)[0].version == "3.12"
    assert choose_interpreter("3.10", available) == (available["3.10"], "")
    chosen, warning = choose_interpreter("3.7", available)
    assert chosen.version == "3.9" and "too old" in warning


def test_interpreters_are_found_where_they_are_installed(tmp_path: Path) -> None:
    for name in (
        ".pyenv/versions/3.10.9/bin",
        ".pyenv/versions/3.10.13/bin",
        ".pyenv/versions/pypy3.10-7.3.17/bin",
        "path",
        ".pyenv/shims",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        ".pyenv/versions/3.10.9/bin/python3.10",
        ".pyenv/versions/3.10.13/bin/python3.10",
        ".pyenv/versions/pypy3.10-7.3.17/bin/python3.10",
        "path/python3.13",
        "path/python3.13-config",
        "path/python3.8",
        ".pyenv/shims/python3.14",
    ):
        (tmp_path / name).touch(mode=0o755)
    found = find_interpreters({"HOME": str(tmp_path), "PATH": f"{tmp_path}/.pyenv/shims:{tmp_path}/path"})
    assert found["3.13"].path == f"{tmp_path}/path/python3.13"
    assert OWN == "3.10" or found["3.10"].path == f"{tmp_path}/.pyenv/versions/3.10.13/bin/python3.10"
    assert set(found) == {OWN, "3.10", "3.13"}
    assert Path(found[OWN].path).exists() and not found[OWN].path.startswith(sys.prefix + "/bin")


def test_pythons_built_without_optimisation_are_known_by_their_build() -> None:
    pyenv = "/home/a/.pyenv/versions/3.11.7"
    assert not is_optimised(pyenv, f"'--prefix={pyenv}' '--enable-shared'")
    assert is_optimised(pyenv, f"'--prefix={pyenv}' '--enable-optimizations' '--with-lto'")
    assert is_optimised("/usr", "'--prefix=/usr' '--enable-shared'")


# --- pip's settings ---


def config(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_pip_settings_are_read_in_pips_order(tmp_path: Path) -> None:
    user = config(
        tmp_path, ".config/pip/pip.conf", "[global]\nindex-url = https://u.test\ntimeout = 5\n[install]\npre = true\n"
    )
    prefix = config(
        tmp_path,
        "prefix/pip.conf",
        "[global]\nindex_url = https://p.test\nextra-index-url =\n  https://a.test\n  https://b.test\n",
    )
    environ = {"HOME": str(tmp_path), "PIP_TIMEOUT": "9"}
    files = pip_config_files(environ, tmp_path / "prefix")
    assert files.index(user) < files.index(prefix)
    settings = read_pip_settings(environ, [user, prefix])
    assert settings["index-url"] == "https://p.test" and settings["timeout"] == "9" and settings["pre"] == "true"
    options = machine_options(environ, settings)
    assert options.index_url == "https://p.test" and options.pre
    assert options.extra_index_urls == ("https://a.test", "https://b.test")
    assert uv_environment(environ, settings)["UV_HTTP_TIMEOUT"] == "9"


def test_uvs_own_settings_win_over_pips() -> None:
    pip = {"index-url": "https://pip.test", "find-links": "/wheels", "cert": "/pip.pem", "no-index": "1"}
    environ = {"UV_DEFAULT_INDEX": "https://uv.test", "UV_FIND_LINKS": "/a,/b", "SSL_CERT_FILE": "/uv.pem"}
    options = machine_options(environ, pip)
    assert options.index_url == "" and options.find_links == ("/a", "/b")
    assert uv_environment(environ, pip)["SSL_CERT_FILE"] == "/uv.pem"
    assert uv_environment({}, pip)["SSL_CERT_FILE"] == "/pip.pem"


def test_uv_does_not_see_who_started_us() -> None:
    assert "VIRTUAL_ENV" not in uv_environment({"VIRTUAL_ENV": "/venv", "PATH": "/bin"}, {})


def test_pip_config_can_be_switched_off() -> None:
    assert pip_config_files({"PIP_CONFIG_FILE": "/dev/null"}, Path("/usr")) == []


def test_a_components_options_go_over_the_machines() -> None:
    machine = PackageOptions("https://m.test", ("https://x.test",), ("/wheels",), no_index=True)
    merged = machine.merged(PackageOptions("https://c.test", ("https://y.test",), trusted_hosts=("y.test",)))
    assert merged.uv_environment() == {
        "UV_DEFAULT_INDEX": "https://c.test",
        "UV_EXTRA_INDEX_URL": "https://x.test https://y.test",
        "UV_FIND_LINKS": "/wheels",
        "UV_INSECURE_HOST": "y.test",
    }
    assert merged.uv_arguments() == [] and machine.uv_arguments() == ["--no-index"]
    assert machine.merged(PackageOptions()) == machine


def test_uvs_drawing_is_taken_out_of_its_message() -> None:
    drawn = (
        "  × No solution found when resolving dependencies:\n  ╰─▶ Because a was not found\n      in the registry.\n"
    )
    assert (
        essential_lines(drawn)
        == "No solution found when resolving dependencies: Because a was not found in the registry."
    )
    assert len(essential_lines("word " * 1000)) < 720
    plain = "error: No solution found\n  cause: Because there is no version of a==9, it cannot be.\n"
    assert essential_lines(plain) == "No solution found: Because there is no version of a==9, it cannot be."


@pytest.mark.parametrize(
    ("text", "network", "unreachable"),
    [
        ("cause: Failed to fetch: http://h/\ncause: tcp connect error\ncause: Connection refused", True, True),
        ("cause: Failed to fetch: http://h/\ncause: HTTP status server error (503 Service Unavailable)", True, False),
        ("cause: Because there is no version of a==9, it cannot be.", False, False),
    ],
)
def test_an_index_that_is_away_is_told_from_one_in_trouble(text: str, network: bool, unreachable: bool) -> None:
    assert (is_network_error(text), is_unreachable(text)) == (network, unreachable)


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_silent_failure_is_said(text: str) -> None:
    assert essential_lines(text) == "uv ended without a message."


def test_the_environment_that_steps_used_last_is_found(tmp_path: Path) -> None:
    now = time.time()
    lines = {
        "a": ["kfp==2.16.0"],
        "b": ["kfp==2.17.0"],
        "c": ["numpy==2.0"],
        "d": ["kfp==1.0"],
        "e": ["kfp==1", "numpy==2.0"],
    }
    for age, (key, packages) in enumerate(lines.items()):
        folder = tmp_path / "envs" / key
        folder.mkdir(parents=True)
        info = {"image": "python", "python": "3.11", "interpreter": "/usr/bin/python3", "digest": "sha256:0"}
        requirements = [*packages, "left --no-deps"]
        (folder / "shallop-environment.json").write_text(
            json.dumps(info | {"packages": packages, "requirements": requirements})
        )
        (folder / "shallop-used").touch()
        os.utime(folder / "shallop-used", (now - 100 * age,) * 2)
    (tmp_path / "envs" / "d" / "shallop-environment.json").write_text("{")
    os.utime(tmp_path / "envs" / "a" / "shallop-used", (now - 500,) * 2)
    found = environments(tmp_path).last_used_for_steps(3600.0)
    assert found is not None
    assert (found.key, found.preload) == ("b", ("shallop_pod.launcher", "kfp.dsl.executor_main"))
    assert environments(tmp_path).last_used_for_steps(50.0) is None
    used_here = environments(tmp_path).last_used_for_steps(50.0, "a")
    assert used_here is not None and used_here.key == "a"
    assert environments(tmp_path / "none").last_used_for_steps(3600.0) is None
