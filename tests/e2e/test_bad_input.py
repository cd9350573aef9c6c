"""Wrong input is refused at the door, with where and what to do, and nothing is half-made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  containers: "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "no YAML"),
        ("kind: Pod", "apiVersion"),
        (POD + "[{name: c, image: python, comand: [true]}]", "comand"),
        (POD + '"none"', "containers"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\na: &a [*a]", "aliases expand"),
        ("apiVersion: acme.example/v1\nkind: Rocket\nmetadata: {name: bad}", "Rocket"),
    ],
)
def test_apply_names_what_is_wrong_and_makes_nothing(platform: Any, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    done = platform.command("apply", "-f", str(file), check=False)
    assert done.returncode == 1, done.stdout
    assert says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "bad" not in platform.kubectl("get", "pods,configmaps", "-o", "name")


def test_logs_of_an_unknown_pod(platform: Any) -> None:
    done = platform.command("logs", "nobody", check=False)
    assert done.returncode == 1
    assert "nobody" in done.stderr and "Traceback" not in done.stderr


def test_a_second_platform_on_the_same_home(platform: Any) -> None:
    done = platform.command("up", "--port", "auto", check=False)
    assert done.returncode == 1
    assert "already running" in done.stderr and "shallop down" in done.stderr


def test_a_taken_port_names_setting_and_flag(platform: Any, tmp_path: Path) -> None:
    port = platform.web.rpartition(":")[2]
    other = type(platform)(tmp_path / "home")
    done = other.command("up", "--detach", "--port", "auto", "--web-port", port, check=False)
    assert done.returncode == 1
    assert "web_port" in done.stderr and "--web-port" in done.stderr
