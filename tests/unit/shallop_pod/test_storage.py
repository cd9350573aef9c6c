"""Bringing a model to its server."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shallop_pod import storage
from shallop_pod.paths import UnsupportedUriError, local_path
from shallop_pod.storage import StorageError, fetch, main, parse_registry_uri, resolve_registry_uri

REGISTRY: dict[str, Any] = {
    "registered_model?iris": {"id": "1", "name": "iris"},
    "registered_models/1/versions": {"items": [{"id": "12", "name": "v2"}]},
    "model_version?v1": {"id": "11", "name": "v1"},
    "model_versions/12/artifacts": {"items": [{"uri": "/models/iris-2"}]},
    "model_versions/11/artifacts": {"items": []},
}


def registry(path: str, query: Mapping[str, str]) -> Any:
    return REGISTRY.get(f"{path}?{query['name']}" if "name" in query else path)


def model(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def found(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folders_content_is_copied(tmp_path: Path) -> None:
    source = model(tmp_path / "source", {"model.joblib": "m", "more/a.json": "{}"})
    fetch(f"file://{source}", str(tmp_path / "target"), {})
    assert found(tmp_path / "target") == {"model.joblib": "m", "more/a.json": "{}"}


def test_a_file_keeps_its_name_and_a_second_start_its_content(tmp_path: Path) -> None:
    source = model(tmp_path / "source", {"model.bst": "m"}) / "model.bst"
    for _ in range(2):
        fetch(str(source), str(tmp_path / "target"), {})
    assert found(tmp_path / "target") == {"model.bst": "m"}


def test_patterns_choose_files(tmp_path: Path) -> None:
    source = model(tmp_path / "source", {"a.joblib": "", "b.txt": "", "old/c.joblib": ""})
    fetch(
        str(source), str(tmp_path / "t"), {"STORAGE_ALLOW_PATTERNS": '["*.joblib"]', "STORAGE_IGNORE_PATTERNS": "old/*"}
    )
    assert set(found(tmp_path / "t")) == {"a.joblib"}


def test_what_is_not_there_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent"), str(tmp_path / "t")]) == 1
    assert capsys.readouterr().err == f"{tmp_path}/absent: there is no such file or folder on this machine.\n"
    assert main(["hdfs://bucket/model", str(tmp_path / "t")]) == 1
    assert "hdfs://bucket/model: hdfs:// is not brought here: use" in capsys.readouterr().err
    assert main(["https://host.test/owner/model.git", str(tmp_path / "t")]) == 1
    assert "repositories of git are not brought here" in capsys.readouterr().err
    assert main(["only-one"]) == 1
    assert found(tmp_path / "t") == {}


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = model(tmp_path / "source", {"a": "1", "b": "2"})
    copyfile = storage.shutil.copyfile

    def full(origin: str, target: str) -> None:
        if origin.endswith("b"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        copyfile(origin, target)

    monkeypatch.setattr(storage.shutil, "copyfile", full)
    assert main([str(source), str(tmp_path / "t")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list((tmp_path / "t").iterdir()) == []


def test_archives_are_unpacked_inside_their_folder_only(tmp_path: Path) -> None:
    for name in ("good", "../evil"):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"ok"))
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive_file:
            archive_file.writestr(name, "ok")
        for kind, file in (("m.tar.gz", packed), ("m.zip", zipped)):
            folder = tmp_path / kind
            folder.mkdir(exist_ok=True)
            if name == "good":
                storage._unpack("http://x.test/m", kind, file, str(folder), lambda _: True)
                assert found(folder) == {"good": "ok"}
            else:
                with pytest.raises(StorageError, match="outside"):
                    storage._unpack("http://x.test/m", kind, file, str(folder), lambda _: True)
    assert not (tmp_path / "evil").exists()


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        info = tarfile.TarInfo("model")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(StorageError, match="link"):
        storage._unpack("http://x.test/m.tar", "m.tar", packed, str(tmp_path), lambda _: True)


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("model-registry://iris", ("", "iris", "")),
        ("model-registry://iris/v1", ("", "iris", "v1")),
        ("model-registry://host:8080/iris", ("host:8080", "iris", "")),
        ("model-registry://model-registry-service.kubeflow/iris", ("model-registry-service.kubeflow", "iris", "")),
        ("model-registry://h/iris/v1", ("h", "iris", "v1")),
        ("model-registry://iris%2Fbig/v1", ("", "iris/big", "v1")),
    ],
)
def test_registry_uris(uri: str, parts: tuple[str, str, str]) -> None:
    assert parse_registry_uri(uri) == parts


def test_the_newest_artifact_of_the_newest_version_is_found() -> None:
    assert resolve_registry_uri("model-registry://iris", registry) == "/models/iris-2"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("model-registry://rose", "has no model 'rose'"),
        ("model-registry://iris/v9", "has no version 'v9'"),
        ("model-registry://iris/v1", "no artifact with the URI of a model"),
        ("model-registry://a/b/c/d", "write model-registry://"),
    ],
)
def test_what_the_registry_lacks_is_said(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        resolve_registry_uri(uri, registry)


def test_local_paths() -> None:
    assert local_path("/a/b") == "/a/b"
    assert local_path("file:///a/b%20c") == "/a/b c"
    for uri in ("a/b", "s3://b/k", "file://host/a", ""):
        with pytest.raises(UnsupportedUriError):
            local_path(uri)
