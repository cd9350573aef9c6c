"""What is removed by itself, and what stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.kubelet.environments import EnvironmentInfo, Environments
from shallop.embedded.kubelet.housekeeping import choose_removable, clean_up, processes_using, why_kept
from shallop.settings import Settings

NOW = 100 * 86_400.0


def info(key: str, days: float, size: int = 1) -> EnvironmentInfo:
    return EnvironmentInfo(key, Path(key), "python:3.11", "3.11", (), (), NOW - days * 86_400, size)


def test_the_old_go_and_then_the_oldest_while_all_are_too_large() -> None:
    infos = [info("new", 0.01, 8), info("week", 7, 4), info("month", 30, 4), info("old", 80, 4)]
    day = 86_400.0
    assert choose_removable(infos, {}, NOW, max_bytes=0, max_age_s=60 * day) == ["old"]
    assert choose_removable(infos, {}, NOW, max_bytes=12, max_age_s=60 * day) == ["old", "month"]
    assert choose_removable(infos, {"month": 1}, NOW, max_bytes=12, max_age_s=60 * day) == ["old", "week"]
    assert choose_removable(infos, {}, NOW, max_bytes=1, max_age_s=0) == ["old", "month", "week"], "the new one stays"
    assert choose_removable(infos, {}, NOW, max_bytes=0, max_age_s=0) == []


@given(st.lists(st.tuples(st.floats(0.05, 90), st.integers(0, 9))), st.integers(1, 30))
def test_what_stays_fits(sizes: list[tuple[float, int]], limit: int) -> None:
    infos = [info(str(number), days, size) for number, (days, size) in enumerate(sizes)]
    removed = set(choose_removable(infos, {}, NOW, max_bytes=limit, max_age_s=0))
    assert sum(item.size_bytes for item in infos if item.key not in removed) <= limit
    kept = [item.last_used for item in infos if item.key not in removed]
    assert all(item.last_used <= min(kept, default=NOW) for item in infos if item.key in removed)


def test_the_reason_is_said() -> None:
    settings = Settings(env_max_age_days=60)
    assert why_kept(info("a", 1), {"a": 2}, NOW, settings) == "in use by 2 processes"
    assert why_kept(info("a", 50), {}, NOW, settings) == "cached, removed in 10 days"
    assert why_kept(info("a", 61), {}, NOW, settings) == "removed at the next clean-up"
    assert why_kept(info("a", 61), {}, NOW, Settings(env_max_age_days=0)) == "cached"


def test_processes_are_counted_by_their_environment(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 2
    command = [sys.executable, "-c", "input()"]
    env = {"VIRTUAL_ENV": f"{tmp_path}/{key}", "PATH": f"{tmp_path}/{key}/bin:/usr/bin"}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE) as process:
        try:
            os.kill(process.pid, 0)
            assert processes_using(tmp_path) == {key: 1}
        finally:
            process.communicate(b"\n")
    assert processes_using(tmp_path) == {}


def test_logs_of_pods_that_are_gone_are_removed_after_their_time(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, cache=tmp_path / "cache", log_retention_days=7)
    for uid, old in (("gone", True), ("lately", False), ("alive", True)):
        file = settings.logs / "team" / f"pod_{uid}" / "main" / "0.log"
        file.parent.mkdir(parents=True)
        file.write_text("x")
        if old:
            for path in (file, file.parent):
                os.utime(path, (1.0, 1.0))
    environments = Environments.of(settings)
    assert clean_up(environments, settings, {"alive"}) == ["logs team/pod_gone"]
    assert sorted(path.name for path in (settings.logs / "team").iterdir()) == ["pod_alive", "pod_lately"]
