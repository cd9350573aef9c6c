"""The environment of a container: references resolved, ``$(NAME)`` expanded. Pure."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shallop.errors import NodeError
from shallop.kube.objects import Object, annotations_of, labels_of, parse_quantity

__all__ = ["Lookup", "container_environment", "expand", "field_value", "resource_value"]

# (kind, name) -> object of the Pod's namespace, None when there is none; kind is ConfigMap, Secret, or Node for the
# Pod's own node.
Lookup = Callable[[str, str], Object | None]
_REFERENCE = re.compile(r"\$\$|\$\(([-A-Za-z0-9_.]+)\)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]\Z")


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by its value; unknown names stay as they are, ``$$`` is a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def container_environment(pod: Object, container: Object, lookup: Lookup, base: Mapping[str, str]) -> dict[str, str]:
    """
    Return all variables of a container.

    Args:
        base: what the node and the image set; ``envFrom`` goes over it, ``env`` over both.

    Raises:
        NodeError: a ConfigMap, Secret or key that is not optional is missing; the message has the field path.
    """
    env = dict(base)
    for position, source in enumerate(container.get("envFrom") or ()):
        env.update(_all_of(source, lookup, f"envFrom[{position}]"))
    for position, item in enumerate(container.get("env") or ()):
        if "valueFrom" in item:
            value = _value_from(pod, container, item["valueFrom"], lookup, f"env[{position}].valueFrom")
            if value is not None:
                env[item["name"]] = value
        else:
            env[item["name"]] = expand(item.get("value") or "", env)
    return env


def _all_of(source: Mapping[str, Any], lookup: Lookup, where: str) -> dict[str, str]:
    kind, reference = (
        ("Secret", source["secretRef"]) if "secretRef" in source else ("ConfigMap", source["configMapRef"])
    )
    obj = lookup(kind, reference["name"])
    if obj is None:
        if reference.get("optional"):
            return {}
        raise NodeError(f'{where}: {kind.lower()} "{reference["name"]}" not found')
    prefix = source.get("prefix") or ""
    return {prefix + key: value for key, value in texts_of(kind, obj).items()}


def texts_of(kind: str, obj: Object) -> dict[str, str]:
    """Return the entries of a ConfigMap or Secret as text."""
    data = obj.get("data") or {}
    if kind == "ConfigMap":
        return dict(data)
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}


def _value_from(pod: Object, container: Object, source: Mapping[str, Any], lookup: Lookup, where: str) -> str | None:
    if reference := source.get("fieldRef"):
        return field_value(pod, reference["fieldPath"])
    if reference := source.get("resourceFieldRef"):
        return resource_value(pod, container, reference, lookup)
    kind, key = ("Secret", "secretKeyRef") if "secretKeyRef" in source else ("ConfigMap", "configMapKeyRef")
    reference = source[key]
    obj = lookup(kind, reference["name"])
    value = None if obj is None else texts_of(kind, obj).get(reference["key"])
    if value is None and not reference.get("optional"):
        what = f'{kind.lower()} "{reference["name"]}" not found'
        if obj is not None:
            what = f"couldn't find key {reference['key']} in {kind} {pod['metadata']['namespace']}/{reference['name']}"
        raise NodeError(f"{where}.{key}: {what}")
    return value


def field_value(pod: Object, path: str) -> str:
    """Return a field that the downward API offers; raises NodeError for any other."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    if match := _SUBSCRIPT.match(path):
        return (labels_of(pod) if match[1] == "labels" else annotations_of(pod)).get(match[2], "")
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = labels_of(pod) if path.endswith("labels") else annotations_of(pod)
        return "\n".join(f'{key}="{value}"' for key, value in sorted(pairs.items()))
    values = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata.get("namespace"),
        "metadata.uid": metadata.get("uid"),
        "spec.nodeName": spec.get("nodeName"),
        "spec.serviceAccountName": spec.get("serviceAccountName"),
        "status.hostIP": status.get("hostIP"),
        "status.hostIPs": status.get("hostIP"),
        "status.podIP": status.get("podIP"),
        "status.podIPs": status.get("podIP"),
    }
    if path not in values:
        raise NodeError(f"fieldPath {path!r} is not supported; use one of {', '.join(sorted(values))}")
    return str(values[path] or "")


def resource_value(pod: Object, container: Object, reference: Mapping[str, Any], lookup: Lookup) -> str:
    """
    Return a resource of a container as ``resourceFieldRef`` asks: divided and rounded up.

    A container without a limit may take what its node has to give.
    """
    name = reference.get("containerName")
    containers = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
    chosen = next((c for c in containers if c["name"] == name), container)
    kind, _, resource = str(reference["resource"]).partition(".")
    value = ((chosen.get("resources") or {}).get(kind) or {}).get(resource)
    if value is None and kind == "limits":
        node = lookup("Node", pod["spec"].get("nodeName") or "") or {}
        value = ((node.get("status") or {}).get("allocatable") or {}).get(resource)
    divisor = parse_quantity(reference.get("divisor") or "1") or parse_quantity("1")
    return str(math.ceil(parse_quantity(value or "0") / divisor))


def expand_all(words: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Expand references in a command or its arguments."""
    return [expand(str(word), env) for word in words]
