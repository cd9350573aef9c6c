"""Names of Services and Pods in the hosts files of namespaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shallop.embedded.kubelet.hosts import HostsFiles

ADDRESSES = {("team", "web"): "10.96.0.1", ("other", "web"): "10.96.0.2"}


def service(name: str, namespace: str = "team", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": "10.96.0.9", **spec}}


SERVICES = [service("web"), service("web", "other"), service("job", clusterIP="None", selector={"app": "job"})]


def pod(name: str, address: str, namespace: str = "team", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"app": "job"}}
    return {"metadata": metadata, "spec": spec, "status": {"podIP": address} if address else {}}


def names(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        address, *rest = line.split()
        for name in rest:
            found.setdefault(name, []).append(address)
    return found


def hosts_files(folder: Path, *namespaces: str) -> HostsFiles:
    hosts = HostsFiles(folder / "hosts")
    hosts.start()
    for namespace in namespaces:
        hosts.of(namespace)
    return hosts


def test_a_pod_finds_services_of_all_namespaces_and_the_short_names_of_its_own(tmp_path: Path) -> None:
    hosts = hosts_files(tmp_path, "team")
    hosts.set_services(SERVICES, ADDRESSES)
    pods = [pod("job-node-0-0", "10.244.0.2", subdomain="job"), pod("later", ""), pod("x", "10.244.0.9", "other")]
    hosts.set_pods({item["metadata"]["name"]: item for item in pods})
    found = names(hosts.of("team"))
    assert found["localhost"] == ["127.0.0.1", "::1"]
    assert found["web"] == found["web.team.svc.cluster.local"] == ["10.96.0.1"]
    assert found["web.other"] == found["web.other.svc"] == ["10.96.0.2"]
    assert found["job-node-0-0.job"] == found["job-node-0-0.job.team.svc.cluster.local"] == ["10.244.0.2"]
    assert found["job"] == found["job.team"] == found["job-node-0-0"] == ["10.244.0.2"]
    assert "later" not in found and "x" not in found
    elsewhere = names(hosts.of("other"))
    assert elsewhere["job-node-0-0.job.team"] == elsewhere["job.team.svc"] == ["10.244.0.2"]
    assert elsewhere["x"] == ["10.244.0.9"] and "job-node-0-0" not in elsewhere and "job" not in elsewhere


def test_a_pod_that_comes_is_added_and_one_that_goes_is_taken_out(tmp_path: Path) -> None:
    hosts = hosts_files(tmp_path, "team", "other")
    hosts.set_services(SERVICES, ADDRESSES)
    first, second = pod("a", "10.244.0.2"), pod("b", "10.244.0.3")
    hosts.set_pods({"1": first})
    before = hosts.of("team").read_text()
    hosts.set_pods({"1": first, "2": second})
    assert hosts.of("team").read_text().startswith(before)
    assert names(hosts.of("team"))["job"] == names(hosts.of("other"))["job.team"] == ["10.244.0.2", "10.244.0.3"]
    hosts.set_pods({"2": second})
    again = pod("a", "10.244.0.4")
    hosts.set_pods({"2": second, "3": again})
    assert names(hosts.of("team"))["a"] == ["10.244.0.4"]
    assert names(hosts.of("other"))["job.team"] == ["10.244.0.3", "10.244.0.4"]


def test_a_service_that_comes_later_picks_the_pods_that_are_there(tmp_path: Path) -> None:
    hosts = hosts_files(tmp_path, "team")
    pods = {"1": pod("a", "10.244.0.2")}
    hosts.set_services([], {})
    hosts.set_pods(pods)
    assert "job" not in names(hosts.of("team"))
    hosts.set_services(SERVICES, ADDRESSES)
    hosts.set_pods(pods)
    assert names(hosts.of("team"))["job"] == ["10.244.0.2"]
    hosts.set_services([], {})
    hosts.set_pods(pods)
    assert set(names(hosts.of("team"))) - {"a"} == {"localhost", "ip6-localhost", "ip6-loopback"}


def test_after_a_restart_names_stay_until_the_new_ones_are_known(tmp_path: Path) -> None:
    hosts = hosts_files(tmp_path, "team")
    hosts.set_services(SERVICES, ADDRESSES)
    hosts.set_pods({"1": pod("a", "10.244.0.2"), "2": pod("gone", "10.244.0.3")})
    hosts = hosts_files(tmp_path)
    pods = {"1": pod("a", "10.244.0.2")}
    hosts.set_pods(pods)
    assert names(hosts.of("team"))["web"] == ["10.96.0.1"]
    hosts.set_services(SERVICES, ADDRESSES)
    hosts.set_pods(pods)
    found = names(hosts.of("team"))
    assert found["web"] == ["10.96.0.1"] and found["a"] == ["10.244.0.2"] and "gone" not in found
