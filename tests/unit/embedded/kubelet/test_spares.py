"""What is left of a Pod's folder for the next Pod."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shallop.embedded.kubelet.spares import clear_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a Pod with one container, as it is at its start."""
    for name in ("home/main", "messages", "private/main/tmp", "private/main/var-tmp", "volumes/token"):
        (tmp_path / name).mkdir(mode=0o700, parents=True)
    for name in ("tmp", "var-tmp"):
        (tmp_path / "private" / "main" / name).chmod(0o1777)
    for name in ("shim.sock", "shim.json", "shim.log", "main-0.exit", "messages/main", "volumes/token/f"):
        (tmp_path / name).touch(mode=0o600)
    return tmp_path


SHIM = {"shim.sock", "shim.json", "shim.log"}
MADE = {"home/main", "messages/main", "private/main/tmp", "private/main/var-tmp"}
ABOVE = {"home", "messages", "private", "private/main", "volumes"}


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_every_container_has_stays_where_it_is_untouched(folder: Path) -> None:
    clear_folder(folder, "main")
    assert names_in(folder) == SHIM | MADE | ABOVE


def test_nothing_stays_for_another_container(folder: Path) -> None:
    clear_folder(folder, "other")
    assert names_in(folder) == SHIM | (ABOVE - {"private/main"})
    clear_folder(folder, "")
    assert names_in(folder) == SHIM


@pytest.mark.parametrize("place", sorted(MADE - {"messages/main"}))
def test_a_folder_with_anything_in_it_goes(folder: Path, place: str) -> None:
    (folder / place / "deep").mkdir()
    (folder / place / "deep" / "file").write_text("mine")
    clear_folder(folder, "main")
    assert names_in(folder) == (SHIM | MADE | ABOVE) - {place}


@pytest.mark.parametrize("place", sorted(MADE))
def test_what_has_other_rights_or_attributes_goes(folder: Path, place: str) -> None:
    os.chmod(folder / place, 0o755)
    clear_folder(folder, "main")
    assert place not in names_in(folder)


def test_a_message_goes(folder: Path) -> None:
    (folder / "messages" / "main").write_text("why it ended")
    clear_folder(folder, "main")
    assert "messages/main" not in names_in(folder)


def test_a_link_is_removed_and_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "file").touch()
    (folder / "private" / "main" / "tmp").rmdir()
    (folder / "private" / "main" / "tmp").symlink_to(other)
    clear_folder(folder, "main")
    assert "private/main/tmp" not in names_in(folder) and (other / "file").exists()
