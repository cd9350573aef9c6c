"""What is left of a Pod's folder for the next Pod."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shallop.embedded.kubelet.podfolder import NOTHING, Kept, clear_folder, clear_quickly, make_container_folders
from shallop.embedded.kubelet.volumes import TOKEN_FOLDER, TokenVolume, prepare_volumes
from shallop.kube.objects import Object
from shallop.settings import Settings


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
    clear_folder(str(folder), "main")
    assert names_in(folder) == SHIM | MADE | ABOVE


def test_nothing_stays_for_another_container(folder: Path) -> None:
    clear_folder(str(folder), "other")
    assert names_in(folder) == SHIM | {"volumes"}
    clear_folder(str(folder), "")
    assert names_in(folder) == SHIM


@pytest.mark.parametrize("place", sorted(MADE - {"messages/main"}))
def test_a_folder_with_anything_in_it_goes(folder: Path, place: str) -> None:
    (folder / place / "deep").mkdir()
    (folder / place / "deep" / "file").write_text("mine")
    clear_folder(str(folder), "main")
    assert names_in(folder) - ABOVE == (SHIM | MADE) - {place}


@pytest.mark.parametrize("place", sorted(MADE))
def test_what_has_other_rights_or_attributes_goes(folder: Path, place: str) -> None:
    os.chmod(folder / place, 0o755)
    clear_folder(str(folder), "main")
    assert place not in names_in(folder)


def test_a_message_goes(folder: Path) -> None:
    (folder / "messages" / "main").write_text("why it ended")
    clear_folder(str(folder), "main")
    assert "messages/main" not in names_in(folder)


def test_a_link_is_removed_and_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "file").touch()
    (folder / "private" / "main" / "tmp").rmdir()
    (folder / "private" / "main" / "tmp").symlink_to(other)
    clear_folder(str(folder), "main")
    assert "private/main/tmp" not in names_in(folder) and (other / "file").exists()


def a_pod(namespace: str = "team", account: str = "default", uid: str = "u1") -> Object:
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    volumes = [{"name": f"kube-api-access-{uid}", "projected": {"sources": sources}}]
    spec = {"containers": [{"name": "main"}], "serviceAccountName": account, "volumes": volumes}
    return {"metadata": {"name": uid, "namespace": namespace, "uid": uid}, "spec": spec}


class Sandbox:
    """The folder of Pods that come one after the other."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.kept: Kept = NOTHING
        self.token: TokenVolume | None = None
        self.folder = home / "pods" / "none"
        self.folder.mkdir(parents=True)

    def begin(self, pod: Object) -> Path:
        """Prepare a Pod; returns the folder of its token's volume."""

        async def token(pod: Object, *_: object) -> str:
            return f"token of {pod['metadata']['uid']}"

        self.folder = self.folder.rename(self.settings.pods / pod["metadata"]["uid"])
        prepared = prepare_volumes(
            pod, self.settings, lambda *_: None, token, lambda: b"certificate", kept=self.kept.token
        )
        folders, self.token = asyncio.run(prepared)
        make_container_folders(str(self.folder), "main")
        [folder] = folders.values()
        assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {"token", "ca.crt", "namespace"}
        assert (folder / "token").read_text() == f"token of {pod['metadata']['uid']}"
        assert (folder / "ca.crt").read_text() == "certificate"
        assert (folder / "namespace").read_text() == pod["metadata"]["namespace"]
        return folder

    def end(self) -> bool:
        """Clear it after the Pod; says whether that was quick."""
        if clear_quickly(str(self.folder), "main", self.token, self.kept):
            return True
        self.kept = clear_folder(str(self.folder), "main", self.token)
        return False

    def settle(self) -> None:
        """Run Pods until what is there has been so for longer than change times are exact."""
        deadline = time.monotonic() + 30
        while True:
            self.begin(a_pod())
            if self.end():
                return
            assert time.monotonic() < deadline


def test_the_next_pod_finds_the_files_of_its_token_and_its_own_token(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    first = sandbox.begin(a_pod()) / "token"
    made = first.stat().st_ino
    sandbox.end()
    assert sandbox.begin(a_pod(uid="u2")).joinpath("token").stat().st_ino == made


def test_a_token_that_others_were_allowed_to_read_is_not_written_over(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.settle()
    sandbox.begin(a_pod()).joinpath("token").chmod(0o644)
    sandbox.end()
    token = sandbox.begin(a_pod(uid="a-longer-name")) / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    sandbox.end()
    sandbox.begin(a_pod())


def test_another_owner_finds_files_of_its_own(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    for number, (namespace, account) in enumerate([("team", "a"), ("team", "b"), ("other", "b")]):
        folder = sandbox.begin(a_pod(namespace, account, f"u{number}"))
        assert len(list(folder.glob("..*"))) == 2
        sandbox.end()
        assert sandbox.kept.token is not None and sandbox.kept.token.owner == (namespace, account)


def _rewrite(folder: Path) -> None:
    (folder / "ca.crt").write_text("CERTIFICATE")


def _add(folder: Path) -> None:
    (folder / "..data" / "more").touch()


def _hide(folder: Path) -> None:
    (folder / "more").mkdir()


def _lead_elsewhere(folder: Path) -> None:
    (folder / "..data" / "token").unlink()
    (folder / "..data" / "token").symlink_to("/tmp/elsewhere")


def _redirect(folder: Path) -> None:
    (folder / "token").unlink()
    (folder / "token").symlink_to("/tmp/elsewhere")


def _share(folder: Path) -> None:
    os.link(folder / "..data" / "token", folder.parent.parent / "home" / "main" / "token")


def _open(folder: Path) -> None:
    (folder / "..data").chmod(0o755)


def _open_file(folder: Path) -> None:
    (folder / "..data" / "namespace").chmod(0o644)


TAMPERING = [_rewrite, _add, _hide, _lead_elsewhere, _redirect, _open, _open_file]


@pytest.mark.parametrize("tamper", [*TAMPERING, _share])
@pytest.mark.parametrize("settled", [False, True])
def test_files_of_a_token_that_were_touched_go(
    tmp_path: Path, tamper: Callable[[Path], None], *, settled: bool
) -> None:
    sandbox = Sandbox(tmp_path)
    if settled:
        sandbox.settle()
    folder = sandbox.begin(a_pod())
    tamper(folder)
    assert not sandbox.end()
    assert sandbox.kept.token is None and not folder.exists()
    sandbox.begin(a_pod(uid="u2"))


def _write(place: Path) -> None:
    if place.is_dir():
        (place / "file").touch()
    else:
        place.write_text("x")


def _write_and_remove(place: Path) -> None:
    _write(place)
    if place.is_dir():
        (place / "file").unlink()
    else:
        place.write_text("")


def _allow(place: Path) -> None:
    place.chmod(0o755)


@pytest.mark.parametrize("place", [*sorted(MADE), "messages", "volumes", "private/main"])
@pytest.mark.parametrize("touch", [_write, _write_and_remove, _allow])
def test_what_was_touched_is_looked_at(tmp_path: Path, place: str, touch: Callable[[Path], None]) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.settle()
    before = names_in(sandbox.folder)
    sandbox.begin(a_pod(uid="u2"))
    touch(sandbox.folder / place)
    assert not sandbox.end()
    assert names_in(sandbox.folder) <= before
    sandbox.begin(a_pod(uid="u3"))


def test_what_the_shim_has_left_of_a_container_is_put_aside_and_removed_in_time(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.settle()
    before = names_in(sandbox.folder)
    quick = []
    for _ in range(40):
        sandbox.begin(a_pod())
        (sandbox.folder / "main-0.exit").touch()
        quick.append(sandbox.end())
        left = names_in(sandbox.folder) - before - {"record.next"}
        assert all(name.startswith("left-") for name in left) and len(left) < 20
        assert quick[-1] or not left
    assert 2 * sum(quick) > len(quick)


def test_the_file_of_a_record_is_there_for_the_next_one(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.settle()
    (sandbox.begin(a_pod()).parents[1] / "main-0.exit").write_text("{}")
    made = (sandbox.folder / "main-0.exit").stat().st_ino
    assert sandbox.end()
    assert (sandbox.folder / "record.next").stat().st_ino == made and not list(sandbox.folder.glob("*.exit"))
    sandbox.begin(a_pod(uid="u2")).joinpath("more").touch()
    assert not sandbox.end()
    assert (sandbox.folder / "record.next").exists()


def test_a_volume_of_a_pod_does_not_stay(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.settle()
    before = names_in(sandbox.folder)
    pod = a_pod()
    pod["spec"]["volumes"].insert(0, {"name": "work", "emptyDir": {}})

    async def token(*_: object) -> str:
        return "token"

    prepared = prepare_volumes(pod, sandbox.settings, lambda *_: None, token, lambda: b"", kept=sandbox.kept.token)
    folders, sandbox.token = asyncio.run(prepared)
    (folders["work"] / "file").touch()
    assert not sandbox.end()
    assert {name for name in names_in(sandbox.folder) if TOKEN_FOLDER not in name} == {
        name for name in before if TOKEN_FOLDER not in name
    }
