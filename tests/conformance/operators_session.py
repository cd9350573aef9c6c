"""
Small programs as their authors would write them, with kr8s, lightkube and kopf, unmodified.

usage: operators_session.py NAMESPACE PROGRAM   (KUBECONFIG in the environment)
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

DEADLINE_S = 60.0
JOB_POD = {
    "restartPolicy": "Never",
    "containers": [{"name": "main", "image": "python:3.11", "command": ["python", "-c", "print('worked')"]}],
}


def until(check: Any, what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if answer := check():
            return answer
        time.sleep(0.05)
    raise SystemExit(f"waited in vain for {what}")


def with_kr8s(namespace: str) -> None:
    import kr8s
    from kr8s.objects import ConfigMap, Job, Pod

    api = kr8s.api(namespace=namespace)
    assert api.version()["major"] == "1"
    note = ConfigMap({"metadata": {"name": "kr8s-note", "namespace": namespace}, "data": {"a": "1"}})
    note.create()
    note.patch({"data": {"a": "2"}})
    note.refresh()
    assert note.raw["data"]["a"] == "2"
    note.label({"made-by": "kr8s"})
    assert [found.name for found in kr8s.get("configmaps", namespace=namespace, label_selector="made-by=kr8s")] == [
        "kr8s-note"
    ]
    job = Job(
        {
            "metadata": {"name": "kr8s-job", "namespace": namespace},
            "spec": {"completions": 2, "parallelism": 2, "completionMode": "Indexed", "template": {"spec": JOB_POD}},
        }
    )
    job.create()
    job.wait("condition=Complete", timeout=DEADLINE_S)
    pods = list(kr8s.get("pods", namespace=namespace, label_selector={"job-name": "kr8s-job"}))
    assert len(pods) == 2 and all(isinstance(pod, Pod) for pod in pods)
    assert [line for line in pods[0].logs()] == ["worked"]
    job.delete(propagation_policy="Foreground")
    # Its wait for an end looks first and watches then: what goes in between is waited for without end.
    until(lambda: not job.exists(), "the job to go")
    note.delete()
    until(lambda: not note.exists(), "the note to go")


def with_lightkube(namespace: str) -> None:
    from lightkube import ApiError, Client
    from lightkube.core.client import CascadeType
    from lightkube.models.apps_v1 import StatefulSetSpec
    from lightkube.models.autoscaling_v1 import ScaleSpec
    from lightkube.models.core_v1 import Container, PodSpec, PodTemplateSpec
    from lightkube.models.meta_v1 import LabelSelector, ObjectMeta
    from lightkube.resources.apps_v1 import StatefulSet
    from lightkube.resources.core_v1 import ConfigMap, Pod
    from lightkube.types import PatchType

    client: Any = Client(namespace=namespace, field_manager="lightkube")
    applied = client.apply(
        ConfigMap(metadata=ObjectMeta(name="lightkube-note", namespace=namespace), data={"a": "1", "b": "2"})
    )
    assert applied.data == {"a": "1", "b": "2"}
    client.apply(ConfigMap(metadata=ObjectMeta(name="lightkube-note", namespace=namespace), data={"a": "1"}))
    assert client.get(ConfigMap, "lightkube-note").data == {"a": "1"}
    labels = {"app": "lightkube"}
    container = Container(name="main", image="python:3.11", command=["python", "-c", "import time; time.sleep(600)"])
    template = PodTemplateSpec(
        metadata=ObjectMeta(labels=labels), spec=PodSpec(containers=[container], terminationGracePeriodSeconds=0)
    )
    spec = StatefulSetSpec(
        serviceName="lightkube", replicas=1, selector=LabelSelector(matchLabels=labels), template=template
    )
    client.create(StatefulSet(metadata=ObjectMeta(name="lightkube", namespace=namespace), spec=spec))
    client.wait(Pod, "lightkube-0", for_conditions=["Ready"])
    client.replace(
        StatefulSet.Scale(metadata=ObjectMeta(name="lightkube", namespace=namespace), spec=ScaleSpec(replicas=2))
    )
    until(lambda: client.get(StatefulSet, "lightkube").status.readyReplicas == 2, "two replicas")
    seen = []
    for event, pod in client.watch(Pod, labels=labels):
        seen.append((event, pod.metadata.name))
        if len(seen) == 2:
            break
    assert sorted(name for _, name in seen) == ["lightkube-0", "lightkube-1"]
    note = {"metadata": {"annotations": {"seen": "yes"}}}
    client.patch(StatefulSet, "lightkube", note, patch_type=PatchType.MERGE)
    assert client.get(StatefulSet, "lightkube").metadata.annotations["seen"] == "yes"
    client.delete(StatefulSet, "lightkube", cascade=CascadeType.FOREGROUND)
    until(lambda: not list(client.list(Pod, labels=labels)), "the Pods to go")
    try:
        client.get(StatefulSet, "nobody")
    except ApiError as error:
        assert error.status.code == 404 and error.status.reason == "NotFound"
    else:
        raise SystemExit("a StatefulSet that is not there was found")
    client.delete(ConfigMap, "lightkube-note")


CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "boats.harbour.example.com"},
    "spec": {
        "group": "harbour.example.com",
        "names": {"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def with_kopf(namespace: str) -> None:
    asyncio.run(_with_kopf(namespace))


async def _with_kopf(namespace: str) -> None:
    """An operator: each Boat gets a ConfigMap, is labelled, and says so in its status."""
    import kopf
    from kr8s.asyncio.objects import ConfigMap, CustomResourceDefinition, new_class

    definition = await CustomResourceDefinition(CRD)
    await definition.create()
    await definition.wait("condition=Established", timeout=DEADLINE_S)
    gone: list[str] = []

    @kopf.on.create("harbour.example.com", "v1", "boats", id="made")
    async def made(spec: Any, name: str, patch: Any, **_: Any) -> dict[str, str]:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"sail": spec["sail"]}}
        kopf.adopt(body)
        await (await ConfigMap(body)).create()
        patch.metadata.labels["afloat"] = "yes"
        return {"message": "launched"}

    @kopf.on.update("harbour.example.com", "v1", "boats", field="spec.sail")
    async def changed(new: str, name: str, **_: Any) -> None:
        await (await ConfigMap.get(name, namespace=namespace)).patch({"data": {"sail": new}})

    @kopf.on.delete("harbour.example.com", "v1", "boats")
    async def ended(name: str, **_: Any) -> None:
        gone.append(name)

    ready, stop = asyncio.Event(), asyncio.Event()
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    operator = asyncio.create_task(
        kopf.operator(settings=settings, namespaces=[namespace], ready_flag=ready, stop_flag=stop)
    )
    await asyncio.wait_for(ready.wait(), DEADLINE_S)
    boat_class = new_class("Boat", version="harbour.example.com/v1", namespaced=True, plural="boats", asyncio=True)
    boat = await boat_class({"metadata": {"name": "shallop", "namespace": namespace}, "spec": {"sail": "red"}})
    await boat.create()

    async def refreshed(obj: Any, is_so: Any, what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            await obj.refresh()
            if is_so(obj.raw):
                return
            await asyncio.sleep(0.05)
        raise SystemExit(f"waited in vain for {what}: {obj.raw}")

    async def vanished(obj: Any) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while await obj.exists():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited in vain for the end of {obj.raw}")
            await asyncio.sleep(0.05)

    def is_launched(raw: Any) -> bool:
        return raw.get("status", {}).get("made", {}).get("message") == "launched"

    await refreshed(boat, is_launched, "the operator's status")
    await refreshed(boat, lambda raw: raw["metadata"].get("labels", {}).get("afloat") == "yes", "the operator's label")
    note = await ConfigMap.get("shallop", namespace=namespace)
    assert note.raw["metadata"]["ownerReferences"][0]["kind"] == "Boat"
    await boat.patch({"spec": {"sail": "white"}})
    await refreshed(note, lambda raw: raw["data"]["sail"] == "white", "the operator's update")
    await boat.delete()
    await vanished(boat)
    assert gone == ["shallop"]
    await vanished(note)
    stop.set()
    await asyncio.wait_for(operator, DEADLINE_S)
    await definition.delete()


if __name__ == "__main__":
    {"kr8s": with_kr8s, "lightkube": with_lightkube, "kopf": with_kopf}[sys.argv[2]](sys.argv[1])
    print("ok")
