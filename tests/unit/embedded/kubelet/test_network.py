"""Addresses, hosts files and the endpoints behind Services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.network import (
    Network,
    ServicePort,
    endpoints_of,
    routed_networks,
    service_of_slice,
    service_ports,
)
from shallop.embedded.kubelet.outside import reachable_resolv_conf
from shallop.settings import Settings


def service(name: str, namespace: str = "team", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": "10.96.0.9", **spec}}


def pod(name: str, address: str, namespace: str = "team", **spec: Any) -> dict[str, Any]:
    labels = {"app": "job"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"metadata": metadata, "spec": spec, "status": {"podIP": address} if address else {}}


def test_service_ports_are_tcp_ports_with_a_cluster_ip() -> None:
    ports = [{"port": 80, "name": "http"}, {"port": 53, "protocol": "UDP"}]
    found = service_ports([service("web", ports=ports), service("gang", clusterIP="None", ports=ports)])
    assert found == [ServicePort("team", "web", "10.96.0.9", 80, "http")]


def test_only_ready_endpoints_of_the_named_port_are_used() -> None:
    item = {
        "metadata": {"namespace": "team", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": 8080}, {"name": "grpc", "port": 9000}],
        "endpoints": [
            {"addresses": ["10.244.0.2"], "conditions": {"ready": True}},
            {"addresses": ["10.244.0.3"], "conditions": {"ready": False}},
        ],
    }
    assert endpoints_of([item], ServicePort("team", "web", "", 80, "grpc")) == [("10.244.0.2", 9000)]
    assert endpoints_of([item], ServicePort("team", "web", "", 80, "other")) == []
    assert service_of_slice(item) == ("team", "web")


def test_a_pod_of_before_gets_an_address_of_the_network_of_now(tmp_path: Path) -> None:
    network = Network(Settings(home=tmp_path), own_network=False)
    assert network.allocate("moved", "10.244.36.2").startswith("127.64.")


def test_addresses_are_unique_and_kept(tmp_path: Path) -> None:
    network = Network(Settings(home=tmp_path), own_network=False)
    kept = network.allocate("old", "127.64.0.3")
    found = [network.allocate(f"uid-{n}") for n in range(50)]
    assert len({kept, *found}) == 51
    assert network.allocate("uid-7") == found[7]
    network.release("uid-7")
    network.hand_over("uid-8", "uid-9000")
    assert network.allocate("uid-9000") == found[8]


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        (["nameserver 10.0.0.2\nsearch lan\n"], 0),
        (["nameserver 127.0.0.53\n", "nameserver 192.168.1.1\n"], 1),
        (["nameserver fe80::1%eth0\n"], 0),
        (["# nothing\n", "nameserver ::1\n"], None),
    ],
)
def test_pods_get_name_servers_that_are_not_on_loopback(tmp_path: Path, texts: list[str], chosen: int | None) -> None:
    files = [tmp_path / str(number) for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    assert reachable_resolv_conf([tmp_path / "absent", *files]) == (None if chosen is None else files[chosen])


def test_networks_of_the_machine_are_read_from_its_routes() -> None:
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    rows = "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\ncni0 0000F40A 00000000 0001 0 0 0 0000FFFF 0 0 0\n"
    assert [str(network) for network in routed_networks(head + rows)] == ["10.244.0.0/16"]
