"""Endpoints, volumes and placement on the real API server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shallop.embedded.workloads.endpointslice import plan_slices, render_endpoints
from shallop.kube.objects import find_condition

Object = dict[str, Any]
Behaviours = dict[str, Callable[..., dict[str, Any]]]


def pod_spec(**resources: str) -> Object:
    container: Object = {"name": "a", "image": "i", "ports": [{"name": "http", "containerPort": 8000}]}
    if resources:
        container["resources"] = {"limits": {key.replace("_", "/"): value for key, value in resources.items()}}
    return {"containers": [container]}


async def endpoints(world: Any, name: str) -> tuple[Object, Object]:
    (part,) = await world.list("EndpointSlice", f"kubernetes.io/service-name={name}")
    return part, await world.get("Endpoints", name)


def test_a_service_follows_its_pods(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        addresses = iter(f"10.1.0.{number}" for number in range(1, 9))
        world.behave = lambda pod: pods_that["run"](pod, next(addresses))
        ports = [{"port": 80, "targetPort": "http"}]
        await world.create("Service", "s", spec={"selector": {"app": "s"}, "ports": ports})

        async def count(number: int) -> bool:
            listed = await world.list("EndpointSlice", "kubernetes.io/service-name=s")
            return len(listed) == 1 and len(listed[0].get("endpoints") or ()) == number

        await world.eventually(lambda: count(0))
        for name in ("p0", "p1"):
            await world.create("Pod", name, metadata={"labels": {"app": "s"}}, spec=pod_spec())
        await world.eventually(lambda: count(2))

        async def both_listed() -> bool:
            _, legacy = await endpoints(world, "s")
            return len((legacy.get("subsets") or [{}])[0].get("addresses") or ()) == 2

        await world.eventually(both_listed)
        part, legacy = await endpoints(world, "s")
        assert part["ports"] == [{"name": "", "port": 8000, "protocol": "TCP"}]
        assert [e["conditions"]["ready"] for e in part["endpoints"]] == [True, True]
        (subset,) = legacy["subsets"]
        assert [address["targetRef"]["name"] for address in subset["addresses"]] == ["p0", "p1"]
        assert subset["ports"] == [{"port": 8000, "protocol": "TCP"}]
        await world.patch("Pod", "p0", {"metadata": {"labels": {"app": None}}})
        await world.eventually(lambda: count(1))
        await world.delete("Service", "s")
        await world.gone("EndpointSlice", part["metadata"]["name"])
        await world.gone("Endpoints", "s")

    run(scenario)


def service(target: int | str = "http", **spec: Any) -> Object:
    ports = [{"port": 80, "targetPort": target, "protocol": "TCP"}]
    metadata = {"name": "s", "namespace": "default", "uid": "s-uid"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": {"app": "s"}, "ports": ports, **spec},
    }


def member(name: str, port: int = 8000, *, ready: bool = True, **spec: Any) -> Object:
    metadata = {"name": name, "namespace": "default", "uid": name, "labels": {"app": "s"}}
    containers = [{"name": "a", "ports": [{"name": "http", "containerPort": port}]}]
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = {"podIP": f"10.0.0.{len(name)}", "phase": "Running", "conditions": [condition]}
    return {"metadata": metadata, "spec": {"containers": containers, **spec}, "status": status}


def test_pods_with_different_ports_are_in_different_slices() -> None:
    slices = plan_slices(service(), [member("a", 8000), member("b", 9000), member("c", 8000)])
    assert [[p["port"] for p in s["ports"]] for s in slices] == [[8000], [9000]]
    assert len({s["metadata"]["name"] for s in slices}) == 2


def test_one_set_of_ports_keeps_its_name() -> None:
    empty, full = plan_slices(service(8000), []), plan_slices(service(8000), [member("a")])
    assert empty[0]["metadata"]["name"] == full[0]["metadata"]["name"]
    assert (empty[0]["endpoints"], empty[0]["ports"]) == (None, None)


def test_headless_names_and_unready_pods() -> None:
    headless = service(clusterIP="None")
    pods = [member("a", hostname="job-0", subdomain="s", ready=False)]
    (part,) = plan_slices(headless, pods)
    assert part["metadata"]["labels"]["service.kubernetes.io/headless"] == ""
    assert part["endpoints"][0]["hostname"] == "job-0"
    assert part["endpoints"][0]["conditions"] == {"ready": False, "serving": False, "terminating": False}
    assert "notReadyAddresses" in render_endpoints(headless, pods)["subsets"][0]
    (open_part,) = plan_slices(service(publishNotReadyAddresses=True), pods)
    assert open_part["endpoints"][0]["conditions"]["ready"]


def claim_spec(**more: Any) -> Object:
    return {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, **more}


def test_a_claim_becomes_a_directory_and_goes_with_it(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("PersistentVolumeClaim", "c", spec=claim_spec())

        async def bound() -> Object | None:
            claim: Object = await world.get("PersistentVolumeClaim", "c")
            return claim if (claim.get("status") or {}).get("phase") == "Bound" else None

        claim = await world.eventually(bound)
        assert claim["status"]["capacity"] == {"storage": "1Gi"}
        volume = await world.get("PersistentVolume", claim["spec"]["volumeName"], "")
        path = Path(volume["spec"]["hostPath"]["path"])
        assert path == world.settings.volumes / "default" / "c"
        (path / "data").write_text("kept")
        await world.create("Pod", "user", spec=pod_spec() | {"volumes": [mount("c")]})
        await world.delete("PersistentVolumeClaim", "c")
        assert (await world.get("PersistentVolumeClaim", "c"))["metadata"]["deletionTimestamp"]
        assert path.is_dir()
        await world.delete("Pod", "user")
        await world.gone("PersistentVolumeClaim", "c")
        await world.gone("PersistentVolume", volume["metadata"]["name"], "")
        assert not path.exists()
        await world.create("PersistentVolumeClaim", "c", spec=claim_spec())
        await world.eventually(bound)
        assert list(path.iterdir()) == []

    run(scenario)


def mount(claim: str) -> Object:
    return {"name": "v", "persistentVolumeClaim": {"claimName": claim}}


def test_a_claim_made_again_at_once_gets_an_empty_directory(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        for _ in range(5):
            await world.create("PersistentVolumeClaim", "c", spec=claim_spec())

            async def bound() -> bool:
                claim = await world.get("PersistentVolumeClaim", "c")
                return (claim.get("status") or {}).get("phase") == "Bound"

            await world.eventually(bound)
            path = world.settings.volumes / "default" / "c"
            assert list(path.iterdir()) == []
            (path / "data").write_text("old")
            await world.delete("PersistentVolumeClaim", "c")
            await world.gone("PersistentVolumeClaim", "c")

    run(scenario)


def test_a_claim_without_a_class_takes_a_volume_that_fits(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        for name, size in (("big", "9Gi"), ("small", "2Gi"), ("tiny", "1Mi")):
            spec = {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": f"/x/{name}"}}
            spec["persistentVolumeReclaimPolicy"] = "Retain"
            await world.create("PersistentVolume", name, "", spec=spec)
        await world.create("PersistentVolumeClaim", "c", spec=claim_spec(storageClassName=""))

        async def bound() -> bool:
            claim = await world.get("PersistentVolumeClaim", "c")
            return claim["spec"].get("volumeName") == "small" and claim["status"].get("phase") == "Bound"

        await world.eventually(bound)
        await world.delete("PersistentVolumeClaim", "c")

        async def released() -> bool:
            return (await world.get("PersistentVolume", "small", ""))["status"]["phase"] == "Released"

        await world.eventually(released)

    run(scenario)


async def unschedulable(world: Any, name: str) -> str:
    async def said() -> str:
        condition = find_condition(await world.get("Pod", name), "PodScheduled") or {}
        return condition.get("message", "") if condition.get("status") == "False" else ""

    return str(await world.eventually(said))


def test_a_gpu_is_given_to_one_pod_at_a_time(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        gpu = {"nvidia.com_gpu": "1"}
        await world.create("Pod", "first", spec=pod_spec(**gpu))

        async def placed(name: str) -> bool:
            pod = await world.get("Pod", name)
            return bool(pod["spec"].get("nodeName")) and bool(find_condition(pod, "PodScheduled"))

        await world.eventually(lambda: placed("first"))
        for name in ("second", "third"):
            await world.create("Pod", name, spec=pod_spec(**gpu))
        message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        assert await unschedulable(world, "second") == message
        assert await unschedulable(world, "third") == message
        # One that ends frees the GPU as well as one that is deleted.
        await world.set_status(await world.get("Pod", "first"), **pods_that["end"](await world.get("Pod", "first")))
        await world.eventually(lambda: placed("second"))
        assert not (await world.get("Pod", "third"))["spec"].get("nodeName")
        await world.delete("Pod", "second", grace_period_s=0)
        await world.eventually(lambda: placed("third"))

    run(scenario)


def test_a_changed_node_takes_all_who_wait(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        for number in range(4):
            await world.create("Pod", f"p{number}", spec=pod_spec() | {"nodeSelector": {"disk": "ssd"}})
        text = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
        assert await unschedulable(world, "p3") == text
        await world.patch("Node", "shallop", {"metadata": {"labels": {"disk": "ssd"}}}, "")

        async def all_placed() -> bool:
            return all(pod["spec"].get("nodeName") for pod in await world.list("Pod"))

        await world.eventually(all_placed)

    run(scenario)


def test_cpu_is_promised_once(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        async def placed() -> bool:
            return bool((await world.get("Pod", "p0"))["spec"].get("nodeName"))

        await world.create("Pod", "p0", spec=pod_spec(cpu="1"))
        await world.eventually(placed)
        for name in ("p1", "p2"):
            await world.create("Pod", name, spec=pod_spec(cpu="1"))
        assert await unschedulable(world, "p2") == "0/1 nodes are available: 1 Insufficient cpu."
        assert sum(bool(pod["spec"].get("nodeName")) for pod in await world.list("Pod")) == 2

    run(scenario)


def test_a_claim_waits_for_its_class(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("PersistentVolumeClaim", "c", spec=claim_spec(storageClassName="fast"))

        async def phase(wanted: str) -> bool:
            claim = await world.get("PersistentVolumeClaim", "c")
            return (claim.get("status") or {}).get("phase") == wanted

        async def told() -> bool:
            reasons = [event["reason"] for event in await world.list("Event")]
            return "ProvisioningFailed" in reasons and await phase("Pending")

        await world.eventually(told)
        await world.create("StorageClass", "fast", "", provisioner="shallop.dev/directory", reclaimPolicy="Delete")
        await world.eventually(lambda: phase("Bound"))

    run(scenario)


def test_a_claim_waits_for_its_first_pod_and_can_grow(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        fields = {"provisioner": "shallop.dev/directory", "volumeBindingMode": "WaitForFirstConsumer"}
        await world.create("StorageClass", "late", "", allowVolumeExpansion=True, **fields)
        await world.create("PersistentVolumeClaim", "c", spec=claim_spec(storageClassName="late"))

        async def told() -> bool:
            return "WaitForFirstConsumer" in [event["reason"] for event in await world.list("Event")]

        async def capacity(wanted: str) -> bool:
            status = (await world.get("PersistentVolumeClaim", "c")).get("status") or {}
            return bool((status.get("capacity") or {}).get("storage") == wanted)

        await world.eventually(told)
        assert not (await world.list("PersistentVolume", namespace=""))
        await world.create("Pod", "user", spec=pod_spec() | {"volumes": [mount("c")]})
        await world.eventually(lambda: capacity("1Gi"))
        patch = {"spec": {"resources": {"requests": {"storage": "3Gi"}}}}
        await world.patch("PersistentVolumeClaim", "c", patch)
        await world.eventually(lambda: capacity("3Gi"))
        (volume,) = await world.list("PersistentVolume", namespace="")
        assert volume["spec"]["capacity"] == {"storage": "3Gi"}

    run(scenario)
