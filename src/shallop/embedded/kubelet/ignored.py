"""Fields of a Pod that have no effect on this node, so that it is said and never silent. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shallop.embedded.kubelet.memory_volumes import in_memory
from shallop.kube.objects import Object

__all__ = ["ignored_fields"]

_AS_PLATFORM = "processes run as the user who started shallop"
_NO_CONTAINER = "a Pod's processes are ordinary processes of this machine"
_POD_FIELDS = {
    "hostPID": _NO_CONTAINER,
    "hostIPC": _NO_CONTAINER,
    "shareProcessNamespace": "each container has its own process namespace",
    "runtimeClassName": "there is one way to run Pods here, see 'shallop doctor'",
    "dnsConfig": "names are resolved by /etc/hosts and the machine's name servers",
    "hostAliases": "/etc/hosts is shared by the Pods of a namespace",
}
_SECURITY_FIELDS = {
    "privileged": "no process gets more rights than shallop has",
    "runAsUser": _AS_PLATFORM,
    "runAsGroup": _AS_PLATFORM,
    "fsGroup": _AS_PLATFORM,
    "supplementalGroups": _AS_PLATFORM,
    "capabilities": _AS_PLATFORM,
    "readOnlyRootFilesystem": "the machine's files are protected by their permissions only",
    "sysctls": _NO_CONTAINER,
    "seLinuxOptions": _NO_CONTAINER,
}
_CONTAINER_FIELDS = {
    "volumeDevices": "block devices cannot be attached",
}


def ignored_fields(pod: Object, *, memory_volumes: bool) -> Iterator[str]:
    """
    Yield one sentence, with the path of the field, for each field that is set and not honoured.

    Args:
        memory_volumes: whether the node keeps volumes in memory.
    """
    spec = pod["spec"]
    yield from _set_fields("spec", spec, _POD_FIELDS)
    yield from _set_fields("spec.securityContext", spec.get("securityContext") or {}, _SECURITY_FIELDS)
    if not memory_volumes:
        yield from _volumes_in_memory(pod)
    for kind in ("initContainers", "containers"):
        for container in spec.get(kind) or ():
            where = f"spec.{kind}[{container['name']}]"
            yield from _set_fields(where, container, _CONTAINER_FIELDS)
            yield from _set_fields(f"{where}.securityContext", container.get("securityContext") or {}, _SECURITY_FIELDS)
            limits = (container.get("resources") or {}).get("limits") or {}
            if "ephemeral-storage" in limits:
                yield f"{where}.resources.limits: ephemeral-storage is not measured and not enforced"
            if any(port.get("hostPort") for port in container.get("ports") or ()) and not spec.get("hostNetwork"):
                why = "it is kept free of other Pods and leads nowhere"
                yield f"{where}.ports: hostPort is not served: {why}; reach the Pod by its address or a Service"


def _volumes_in_memory(pod: Object) -> Iterator[str]:
    """Yield where a volume of medium Memory is used as anything but /dev/shm, which is in memory anyway."""
    spec, memory = pod["spec"], in_memory(pod)
    elsewhere = {
        mount["name"]
        for kind in ("initContainers", "containers")
        for container in spec.get(kind) or ()
        for mount in container.get("volumeMounts") or ()
        if mount["mountPath"].rstrip("/") != "/dev/shm"
    }
    for index, volume in enumerate(spec.get("volumes") or ()):
        if volume["name"] in memory & elsewhere:
            yield f"spec.volumes[{index}].emptyDir.medium has no effect: the volume is kept on disk"


def _set_fields(where: str, fields: Mapping[str, Any], known: Mapping[str, str]) -> Iterator[str]:
    for name, why in known.items():
        if fields.get(name) not in (None, False, {}, []):
            yield f"{where}.{name} has no effect: {why}"
