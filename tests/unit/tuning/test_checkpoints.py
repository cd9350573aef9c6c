"""Checkpoints of populations."""

from __future__ import annotations

from pathlib import Path

from shallop.settings import Settings
from shallop.tuning.algorithms.pbt import GENERATION, PARENT
from shallop.tuning.checkpoints import checkpoint_folder, prepare_checkpoint, remove_checkpoint


def member(name: str, **labels: str) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "team", "labels": labels}}


def test_a_member_begins_with_its_parents_checkpoint_and_keeps_its_own(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    first, second = checkpoint_folder(settings, "team", "a"), checkpoint_folder(settings, "team", "b")
    prepare_checkpoint(settings, member("a", **{GENERATION: "0"}))
    (first / "weights").write_text("1")
    child = member("b", **{GENERATION: "1", PARENT: "a"})
    # What an interrupted copy has left is no checkpoint.
    (tmp_path / "tuning" / "team" / "b.copying").mkdir()
    prepare_checkpoint(settings, child)
    assert (second / "weights").read_text() == "1"
    (second / "weights").write_text("2")
    prepare_checkpoint(settings, child)
    assert (second / "weights").read_text() == "2", "done once only"
    remove_checkpoint(settings, "team", "b")
    assert not second.exists() and (first / "weights").read_text() == "1"


def test_other_trials_have_no_checkpoint(tmp_path: Path) -> None:
    prepare_checkpoint(Settings(home=tmp_path), member("c"))
    assert list(tmp_path.iterdir()) == []
