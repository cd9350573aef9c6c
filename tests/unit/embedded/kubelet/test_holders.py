"""Who may share a loaded model: which containers, and what must be equal of two of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.holders import Sharing, can_share, digest_of, render_key, render_request
from shallop_pod.zygote import Request

SERVER = "shallop_pod.modelserver"


def request(module: str = SERVER, **env: str) -> Request:
    mounts = [
        {"target": "/mnt/models", "source": "/home/pods/1/volumes/models", "readonly": True},
        {"target": "/tmp", "source": "/home/pods/1/private/tmp"},
        {"target": "/dev", "devices": True},
    ]
    plan = {"pid": True, "netns": "pod", "hostname": "iris-1", "mounts": mounts, "cgroups": ["/groups/of/the/pod"]}
    return Request(module, ["--model_name=iris"], {"HOME": "/home/pods/1/home", "A": "1", **env}, "/", plan)


def pod(kind: str = "ReplicaSet") -> dict[str, Any]:
    owners = [{"kind": "Other", "uid": "other"}, {"kind": kind, "uid": "set", "controller": True}]
    return {"metadata": {"name": "iris-1", "ownerReferences": owners}}


def sharing(**changes: Any) -> Sharing:
    found = Sharing(("set", "main"), "uid-1", request(), {"/mnt/models": "/models/1"}, "/proc/7/ns/net")
    return found._replace(**changes)


def shares(container: dict[str, Any] | None = None, *, restarts: int = 0, level: str = "namespaces") -> str:
    return can_share(pod(), container or {}, request(), level=level, restarts=restarts)


def test_model_servers_of_one_replicaset_may_share() -> None:
    limits = {"limits": {"cpu": "1", "memory": "2Gi"}, "requests": {"memory": "1Gi"}}
    assert shares({"resources": limits}) == shares(level="user") == shares(restarts=1) == "set"


def test_what_speaks_against_it() -> None:
    assert shares(level="none") == shares(restarts=2) == shares({"tty": True}) == ""
    assert shares({"resources": {"limits": {"nvidia.com/gpu": "1"}}}) == ""
    assert can_share(pod("Job"), {}, request(), level="namespaces", restarts=0) == ""
    assert can_share({"metadata": {"name": "alone"}}, {}, request(), level="namespaces", restarts=0) == ""
    assert can_share(pod(), {}, request("shallop_pod.agent"), level="namespaces", restarts=0) == ""


def test_what_each_pod_has_of_its_own_makes_no_difference() -> None:
    other = request(HOME="/home/pods/2/home", HOSTNAME="iris-2", POD_IP="10.0.0.2", TERMINATION_LOG="/2")
    key = render_key("env", sharing())
    assert key == render_key("env", sharing(uid="uid-2", request=other, sources={"/mnt/models": "/models/2"}))
    assert key != render_key("other", sharing())
    assert key != render_key("env", sharing(request=request(A="2")))
    assert key != render_key("env", sharing(request=replace(request(), argv=["--model_name=other"])))
    assert key != render_key("env", sharing(sources={"/mnt/models": "/models/1", "/etc/more": "/more"}))


def test_a_holder_loads_where_the_container_would_be() -> None:
    found = render_request(sharing(), Path("/run/1.sock"), ["/groups/holder"])
    assert found.module == "shallop_pod.modelserver.holder" and found.plan is None
    assert found.argv[-2:] == ["--", "--model_name=iris"] and found.env == request().env
    plan = json.loads(found.argv[found.argv.index("--plan") + 1])
    assert "pid" not in plan
    assert (plan["netns"], plan["hostname"], plan["cgroups"]) == ("/proc/7/ns/net", "iris-1", ["/groups/holder"])
    places = {mount["target"]: mount for mount in plan["mounts"]}
    assert places["/mnt/models"]["source"] == "/home/pods/1/volumes/models"
    assert places["/tmp"]["tmpfs"] and places["/var/tmp"]["tmpfs"] and places["/dev"]["devices"]


def folder(path: Path, text: str = "model") -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "model.pkl").write_text(text)
    (path / "link").symlink_to("inner/model.pkl")
    return path


def test_copies_have_one_digest_and_changes_another(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two")
    digest = digest_of({"/mnt/models": str(one)}, {})
    assert digest and digest == digest_of({"/mnt/models": str(two)}, {})
    assert digest != digest_of({"/mnt/other": str(one)}, {})
    (two / "inner" / "model.pkl").write_text("lodem")
    assert digest != digest_of({"/mnt/models": str(two)}, {})
    assert digest == digest_of({"/mnt/models": str(one), "/var/run/secrets/token": str(two)}, {})


def test_files_that_have_not_changed_are_not_read_again(tmp_path: Path) -> None:
    known: dict[tuple[int, ...], str] = {}
    source = {"/mnt/models": str(folder(tmp_path / "one"))}
    digest = digest_of(source, known)
    (identity,) = known
    known[identity] = "remembered"
    assert digest_of(source, known) != digest
    os.utime(tmp_path / "one" / "inner" / "model.pkl", ns=(1, 1))
    assert digest_of(source, known) == digest


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside"])
def test_what_a_link_leads_to_elsewhere_is_not_known(tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").write_text("changes")
    source = folder(tmp_path / "one")
    (source / "away").symlink_to(target)
    assert digest_of({"/mnt/models": str(source)}, {}) == ""
