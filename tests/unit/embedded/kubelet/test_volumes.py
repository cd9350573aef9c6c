"""Volumes: what lies in their folders, and what they refuse."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.volumes import container_mounts, over_limit, prepare_volumes
from shallop.errors import NodeError, SettingsError
from shallop.kube.objects import Object
from shallop.settings import Settings


def prepare(home: Path, *volumes: dict[str, Any], **objects: Object) -> dict[str, Path]:
    """Make volumes of a Pod; ``objects`` by kind, whatever name is asked for."""
    metadata = {"name": "p", "namespace": "team", "uid": "u1", "labels": {"a": "b"}}
    spec = {"containers": [{"name": "main"}], "volumes": [{"name": f"v{n}", **v} for n, v in enumerate(volumes)]}
    pod = {"metadata": metadata, "spec": spec}

    async def token(pod: Object, *wanted: Any) -> str:
        return f"token of {pod['metadata']['uid']} for {wanted}"

    settings = Settings(home=home)
    prepared = prepare_volumes(pod, settings, lambda kind, name: objects.get(kind), token, lambda: b"CA")
    return asyncio.run(prepared).folders


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_change_all_at_once_and_links_stay(tmp_path: Path) -> None:
    volume = {"configMap": {"name": "config"}}
    folder = prepare(tmp_path, volume, ConfigMap={"data": {"a": "1", "b": "2"}})["v0"]
    assert ((folder / "a").read_text(), (folder / "b").read_text()) == ("1", "2")
    link = (folder / "a").readlink()
    first = (folder / "..data").readlink()
    prepare(tmp_path, volume, ConfigMap={"data": {"a": "1", "b": "2"}})
    assert (folder / "..data").readlink() == first
    prepare(tmp_path, volume, ConfigMap={"data": {"a": "new"}})
    assert (folder / "a").read_text() == "new" and (folder / "a").readlink() == link
    assert (folder / "..data").readlink() != first and not (folder / first).exists()


def test_secrets_can_be_read_by_their_owner_alone(tmp_path: Path) -> None:
    data = {"password": base64.b64encode(b"s3cret").decode()}
    secret = {"secret": {"secretName": "s", "items": [{"key": "password", "path": "deep/file"}]}}
    folder = prepare(tmp_path, secret, Secret={"data": data})["v0"]
    assert (folder / "deep" / "file").read_bytes() == b"s3cret"
    assert mode(folder / "deep" / "file") & 0o077 == 0
    assert mode(folder / (folder / "..data").readlink()) == 0o700


def test_a_service_account_is_projected(tmp_path: Path) -> None:
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    folder = prepare(tmp_path, {"projected": {"sources": sources}})["v0"]
    assert (folder / "token").read_text() == "token of u1 for ('', 3607)" and mode(folder / "token") == 0o600
    assert (folder / "ca.crt").read_bytes() == b"CA"
    assert (folder / "namespace").read_text() == "team"


@pytest.mark.parametrize(
    ("volume", "objects", "text"),
    [
        ({"nfs": {"server": "s", "path": "/"}}, {}, r"spec\.volumes\[0\].*nfs.*emptyDir"),
        ({"configMap": {"name": "none"}}, {}, r'spec\.volumes\[0\]\.configMap: configmap "none" not found'),
        ({"persistentVolumeClaim": {"claimName": "none"}}, {}, r'persistentvolumeclaim "none" not found'),
        ({"hostPath": {"path": "/no/such"}}, {}, r"hostPath\.path: /no/such does not exist"),
        (
            {"configMap": {"name": "c", "items": [{"key": "a", "path": "../../evil"}]}},
            {"ConfigMap": {"data": {"a": "x"}}},
            "leaves the volume",
        ),
        (
            {"configMap": {"name": "c", "items": [{"key": "z", "path": "z"}]}},
            {"ConfigMap": {"data": {}}},
            "non-existent key: z",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(
    tmp_path: Path, volume: dict[str, Any], objects: dict[str, Any], text: str
) -> None:
    with pytest.raises(NodeError, match=text):
        prepare(tmp_path, volume, **objects)
    assert not (tmp_path / "pods" / "evil").exists()


def test_optional_objects_may_be_missing(tmp_path: Path) -> None:
    folder = prepare(tmp_path, {"secret": {"secretName": "none", "optional": True}})["v0"]
    assert folder.is_dir()


def mounts(volume: Path, **mount: Any) -> list[dict[str, Any]]:
    container = {"name": "main", "volumeMounts": [{"name": "data", "mountPath": "/data", **mount}]}
    return container_mounts(container, {"data": volume}, {"NAME": "inner"}, "spec.containers[0]")


def test_a_sub_path_stays_inside_its_volume(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "link").symlink_to(tmp_path)
    [found] = mounts(volume, subPath="a/b", readOnly=True)
    assert (found["target"], found["readonly"]) == ("/data", True)
    assert found["source"] == str(volume / "a" / "b") and (volume / "a" / "b").is_dir()
    for path in ("../x", "/etc", "link"):
        with pytest.raises(NodeError, match="subPath"):
            mounts(volume, subPath=path)
    with pytest.raises(NodeError, match='no volume "other"'):
        mounts(volume, name="other")


def test_a_sub_path_may_name_a_variable(tmp_path: Path) -> None:
    [found] = mounts(tmp_path, subPathExpr="of/$(NAME)")
    assert found["source"] == str(tmp_path / "of" / "inner")
    with pytest.raises(NodeError, match="no such variable"):
        mounts(tmp_path, subPathExpr="$(OTHER)")


def test_a_host_path_must_be_of_its_type(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = prepare(tmp_path / "home", {"hostPath": {"path": str(tmp_path / "file"), "type": "File"}})
    assert found["v0"] == tmp_path / "file"
    with pytest.raises(NodeError, match="is not a directory"):
        prepare(tmp_path / "home", {"hostPath": {"path": str(tmp_path / "file"), "type": "Directory"}})


def test_a_host_path_leads_nowhere_into_the_platform(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "tls").mkdir(parents=True)
    (home / "artifacts" / "run").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home / "tls")
    (home / "artifacts" / "link").symlink_to(home)
    for path in (home, home / "tls", home / "artifacts" / ".." / "tls", tmp_path / "link", home / "artifacts" / "link"):
        with pytest.raises(NodeError, match=r"spec\.volumes\[0\]\.hostPath\.path: .* belongs to the platform"):
            prepare(home, {"hostPath": {"path": str(path)}})
    shared = home / "artifacts" / "run"
    assert prepare(home, {"hostPath": {"path": str(shared)}})["v0"] == shared


def test_host_paths_may_be_limited_to_folders(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", host_paths=f"{tmp_path}/data,{tmp_path}/more")
    for path, allowed in (("data", True), ("more/x", True), ("database", False), ("", False), ("data/../x", False)):
        problem = settings.refused_path(Path(os.path.realpath(tmp_path / path)))
        assert bool(problem) != allowed, path
    nothing = Settings(home=tmp_path / "home", host_paths="none")
    assert "--host-paths none" in nothing.refused_path(tmp_path / "data")
    assert nothing.refused_path(tmp_path / "home" / "artifacts" / "x") == ""
    with pytest.raises(SettingsError, match="host_paths: 'data' is no absolute path"):
        Settings(host_paths="data")


def test_a_volume_that_has_grown_too_large_is_found(tmp_path: Path) -> None:
    pod = {"spec": {"volumes": [{"name": "a", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "b", "emptyDir": {}}]}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "small").write_bytes(b"x" * 1000)
    assert over_limit(pod, {"a": tmp_path / "a"}) == ""
    (tmp_path / "a" / "large").write_bytes(b"x" * 2_000_000)
    assert over_limit(pod, {"a": tmp_path / "a"}) == 'Usage of EmptyDir volume "a" exceeds the limit "1Mi". '


def test_a_claim_of_a_volume_that_was_declared_is_where_the_volume_says(tmp_path: Path) -> None:
    volume = {"persistentVolumeClaim": {"claimName": "c"}}
    claim = {"spec": {"volumeName": "v"}}
    own = prepare(tmp_path, volume, PersistentVolumeClaim={"spec": {}})["v0"]
    assert own == tmp_path / "volumes" / "team" / "c"
    made = {"spec": {"hostPath": {"path": str(own)}}}
    assert prepare(tmp_path, volume, PersistentVolumeClaim=claim, PersistentVolume=made)["v0"] == own
    declared = {"spec": {"local": {"path": f"{tmp_path}-disk/models"}}}
    found = prepare(tmp_path, volume, PersistentVolumeClaim=claim, PersistentVolume=declared)["v0"]
    assert found == Path(f"{tmp_path}-disk/models") and found.is_dir()
    inside = {"spec": {"hostPath": {"path": str(tmp_path / "database")}}}
    with pytest.raises(NodeError, match="belongs to the platform"):
        prepare(tmp_path, volume, PersistentVolumeClaim=claim, PersistentVolume=inside)
    with pytest.raises(NodeError, match="not found"):
        prepare(tmp_path, volume, PersistentVolumeClaim=claim)
