"""Control groups of homes and their Pods."""

from __future__ import annotations

from pathlib import Path

import pytest

from shallop.embedded.kubelet import limits
from shallop.embedded.kubelet.limits import ControlGroups

HERE, GONE = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"


def test_groups_of_pods_that_are_gone_are_removed_and_only_those_of_this_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_V1_MEMORY", "_V1_CPU"):
        monkeypatch.setattr(limits, name, tmp_path / "absent")
    monkeypatch.setattr(limits, "_V2", tmp_path)
    ours, theirs = ControlGroups(Path("/home/me/.shallop")), ControlGroups(Path("/home/you/.shallop"))
    for groups in (ours, theirs):
        for uid in (HERE, GONE):
            (tmp_path / groups._name(uid, "main-0")).mkdir()
    ours.adopt({HERE})
    theirs.adopt({HERE, GONE})
    assert ours.existing(HERE, "main-0") and not ours.existing(GONE, "main-0")
    assert theirs.existing(HERE, "main-0") and theirs.existing(GONE, "main-0")
    theirs.remove(HERE)
    assert not theirs.existing(HERE, "main-0") and theirs.existing(GONE, "main-0")
