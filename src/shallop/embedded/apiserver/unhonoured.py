"""What an accepted object asks for and nobody here does: said as a Warning, so that nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable

from shallop.embedded.apiserver.resources import Resource
from shallop.kube.objects import Object

__all__ = ["warnings_of"]


def warnings_of(resource: Resource, obj: Object) -> list[str]:
    """Return one text for each field, or whole kind, that is stored without effect."""
    if resource.custom or resource.storage not in _CHECKS:
        return []
    return [f"{text} has no effect here: {why}" for text, why in _CHECKS[resource.storage](obj)]


def _service(obj: Object) -> list[tuple[str, str]]:
    spec = obj.get("spec") or {}
    found = []
    if spec.get("sessionAffinity") == "ClientIP":
        found.append(("spec.sessionAffinity: ClientIP", "a connection goes to any ready Pod"))
    if spec.get("type") in ("NodePort", "LoadBalancer"):
        why = "no port is opened on the machine; use kubectl port-forward, an HTTPRoute, or its name inside Pods"
        found.append((f"spec.type: {spec['type']}", why))
    for number, port in enumerate(spec.get("ports") or ()):
        if port.get("protocol", "TCP") != "TCP":
            found.append((f"spec.ports[{number}].protocol: {port['protocol']}", "Services carry TCP only"))
    return found


_CHECKS: dict[str, Callable[[Object], list[tuple[str, str]]]] = {
    "services": _service,
    "ingresses.networking.k8s.io": lambda obj: [("an Ingress", "write an HTTPRoute for the gateway")],
    "networkpolicies.networking.k8s.io": lambda obj: [("a NetworkPolicy", "every Pod may reach every other")],
}
