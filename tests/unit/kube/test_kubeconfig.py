"""Reading kubeconfigs: which cluster, which login, which proxy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from shallop.errors import SettingsError, UnauthorizedError
from shallop.kube.credentials import Credentials, from_file
from shallop.kube.kubeconfig import in_cluster, load_kubeconfig


def kubeconfig(file: Path, *, server: str = "http://127.0.0.1:1", user: Any = None, cluster: Any = None) -> Path:
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    file.write_text(yaml.safe_dump(config))
    return file


def authorization(credentials: Credentials) -> str:
    return asyncio.run(credentials.login()).authorization


def test_a_token_becomes_a_bearer_header(tmp_path: Path) -> None:
    access = load_kubeconfig(kubeconfig(tmp_path / "config", user={"token": "abc"}))
    assert authorization(access.credentials) == "Bearer abc"
    assert (access.server, access.namespace) == ("http://127.0.0.1:1", "team")


def test_a_token_file_is_relative_to_its_kubeconfig_and_read_again_when_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first\n")
    access = load_kubeconfig(kubeconfig(tmp_path / "config", user={"tokenFile": "token"}))

    async def use() -> list[str]:
        first = await access.credentials.login()
        (tmp_path / "token").write_text("second\n")
        kept = await access.credentials.login()
        access.credentials.reject(first)
        renewed = await access.credentials.login()
        return [first.authorization, kept.authorization, renewed.authorization]

    assert asyncio.run(use()) == ["Bearer first", "Bearer first", "Bearer second"]


def test_a_token_file_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnauthorizedError, match=r"token file .*missing"):
        from_file(tmp_path / "missing")()


def test_of_several_files_the_first_entry_of_a_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kubeconfig(tmp_path / "first", server="http://127.0.0.1:1")
    second = kubeconfig(tmp_path / "second", server="http://127.0.0.1:2", user={"token": "x"})
    extra = yaml.safe_load(second.read_text())
    extra["contexts"].append({"name": "there", "context": {"cluster": "d"}})
    extra["clusters"].append({"name": "d", "cluster": {"server": "http://127.0.0.1:3/"}})
    second.write_text(yaml.safe_dump(extra))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{second}:{tmp_path / 'missing'}")
    assert load_kubeconfig().server == "http://127.0.0.1:1"
    assert authorization(load_kubeconfig().credentials) == ""
    assert load_kubeconfig(context="there").server == "http://127.0.0.1:3"


@pytest.mark.parametrize(
    ("user", "cluster", "problem"),
    [
        ({"auth-provider": {"name": "gcp"}}, {}, "auth-provider is not supported"),
        ({"username": "a", "password": "b"}, {}, "username and password"),
        ({"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}}, {}, "exec.apiVersion"),
        ({}, {"proxy-url": "socks5://127.0.0.1:1"}, "proxy 'socks5"),
        ({}, {"server": "nowhere"}, "is no URL"),
        ({"client-certificate-data": "eA=="}, {"server": "https://127.0.0.1:1"}, "go together"),
        ({}, {"server": "https://127.0.0.1:1", "certificate-authority-data": "eA=="}, "certificates of"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(tmp_path: Path, user: Any, cluster: Any, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        load_kubeconfig(kubeconfig(tmp_path / "config", user=user, cluster=cluster))


def test_a_context_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no entry named 'there'; it has: here"):
        load_kubeconfig(kubeconfig(tmp_path / "config"), context="there")
    with pytest.raises(SettingsError, match="No such file"):
        load_kubeconfig(tmp_path / "missing")


def test_proxies_come_from_the_kubeconfig_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    for server, proxy in (
        ("https://outside.example", "http://proxy.example:3128"),
        ("https://inside.example", ""),
        ("https://127.0.0.1:6443", ""),
    ):
        assert load_kubeconfig(kubeconfig(tmp_path / "config", server=server)).proxy == proxy
    given = kubeconfig(tmp_path / "config", server="https://127.0.0.1:1", cluster={"proxy-url": "http://127.0.0.1:2"})
    assert load_kubeconfig(given).proxy == "http://127.0.0.1:2"


def test_impersonation_is_sent(tmp_path: Path) -> None:
    access = load_kubeconfig(
        kubeconfig(tmp_path / "config", user={"token": "x", "as": "jane", "as-groups": ["a", "b"]})
    )
    assert access.headers == (("Impersonate-User", "jane"), ("Impersonate-Group", "a"), ("Impersonate-Group", "b"))


def test_a_pod_finds_its_cluster(tmp_path: Path) -> None:
    from shallop.embedded.apiserver.tls import ensure_tls

    for name, text in (("token", "t"), ("namespace", "team\n"), ("ca.crt", ensure_tls(tmp_path).ca.read_text())):
        (tmp_path / name).write_text(text)
    access = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, tmp_path)
    assert (access.server, access.namespace) == ("https://[fd00::1]:443", "team")
    assert authorization(access.credentials) == "Bearer t"
    with pytest.raises(SettingsError, match="KUBERNETES_SERVICE_HOST"):
        in_cluster({}, tmp_path)
