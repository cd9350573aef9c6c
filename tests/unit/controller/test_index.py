"""Objects of an Informer by something else than their names."""

from __future__ import annotations

from typing import Any

from shallop.controller import Change, Index, Informer
from shallop.kube.objects import Gvk


class Nobody:
    """A client that is not asked."""


def slice_of(service: str, name: str = "a") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team", "labels": {"service": service} if service else {}}}


def test_objects_are_found_by_their_value_as_it_changes() -> None:
    informer = Informer(Nobody(), Gvk("v1", "Slice"))  # type: ignore[arg-type]
    index = Index(informer, lambda obj: obj["metadata"]["labels"].get("service"))

    def tell(old: dict[str, Any] | None, new: dict[str, Any] | None) -> set[Any]:
        change = Change(old, new)
        for handler in informer._handlers:
            handler(change)
        return index.touched(change)

    web, other, job = slice_of("web"), slice_of("web", "b"), slice_of("job")
    assert tell(None, web) == {"web"} and tell(None, other) == {"web"}
    assert index.get("web") == [web, other]
    assert tell(web, job) == {"web", "job"}
    assert (index.get("web"), index.get("job")) == ([other], [job])
    assert tell(job, slice_of("")) == {"job"} and index.get("job") == []
    assert tell(other, None) == {"web"} and index.get("web") == [] and index._objects == {}
