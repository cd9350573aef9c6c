"""Addresses and node ports of Services."""

from typing import Any

SERVICES = "/api/v1/namespaces/default/services"


def service(name: str, **spec: Any) -> dict[str, Any]:
    body = {"ports": [{"port": 80}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def test_each_service_has_its_own_address_and_gives_it_back(api: Any) -> None:
    async def test(http: Any) -> None:
        made = [(await http("POST", SERVICES, service(f"s{n}"))).body["spec"]["clusterIP"] for n in range(20)]
        assert len(set(made)) == 20 and "10.96.0.1" not in made
        refused = await http("POST", SERVICES, service("taken", clusterIP=made[0]))
        assert refused.status == 422 and "provided IP is already allocated" in refused.message
        assert (await http("POST", SERVICES, service("api", clusterIP="10.96.0.1"))).status == 422
        kept = (await http("GET", f"{SERVICES}/s0")).body
        assert (await http("PUT", f"{SERVICES}/s0", kept | {"metadata": kept["metadata"]})).status == 200
        assert (await http("DELETE", f"{SERVICES}/s0")).status == 200
        later = (await http("POST", SERVICES, service("later"))).body["spec"]["clusterIP"]
        assert later not in made, "an address that was in use a moment ago is not given again"
        assert (await http("POST", SERVICES, service("again", clusterIP=made[0]))).status == 201

    api(test)


def test_node_ports_are_chosen_once(api: Any) -> None:
    async def test(http: Any) -> None:
        ports = [{"name": "a", "port": 1}, {"name": "b", "port": 2, "nodePort": 30000}]
        first = (await http("POST", SERVICES, service("a", type="NodePort", ports=ports))).body
        numbers = [port["nodePort"] for port in first["spec"]["ports"]]
        second = (await http("POST", SERVICES, service("b", type="NodePort"))).body
        numbers.append(second["spec"]["ports"][0]["nodePort"])
        assert numbers[1] == 30000 and len(set(numbers)) == 3
        again = await http("PUT", f"{SERVICES}/a", first)
        assert [port["nodePort"] for port in again.body["spec"]["ports"]] == numbers[:2]

    api(test)
