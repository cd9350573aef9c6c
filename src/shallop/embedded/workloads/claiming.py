"""Which Pods are whose: adoption of orphans that match a selector, release of those that match no longer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from shallop.controller import Context
from shallop.embedded.workloads.children import Children
from shallop.embedded.workloads.pods import POD, is_active
from shallop.kube.objects import Object, controller_of, is_deleting, key_of, labels_of, owner_reference
from shallop.kube.selectors import match_selector

__all__ = ["Claims", "claim_pods", "plan_claims"]


class Claims(NamedTuple):
    """Pods to take (orphans that match) and to let go (owned ones that match no longer)."""

    adopt: list[Object]
    release: list[Object]


def plan_claims(owner: Object, owned: Iterable[Object], others: Iterable[Object]) -> Claims:
    """Decide which Pods change hands; ``others`` are Pods of the namespace, most of them somebody's."""
    if is_deleting(owner):
        return Claims([], [])
    selector = owner["spec"]["selector"]
    release = [pod for pod in owned if not match_selector(selector, labels_of(pod))]
    adopt = [
        pod for pod in others if not controller_of(pod) and is_active(pod) and match_selector(selector, labels_of(pod))
    ]
    return Claims(adopt, release)


async def claim_pods(
    ctx: Context, children: Children, owner: Object, fits: Callable[[Object], bool] = lambda pod: True
) -> list[Object]:
    """
    Return the Pods of ``owner`` after adopting and releasing what has to change hands.

    Args:
        fits: says of a Pod whether the owner can use it, beside its labels.
    """
    owned = await children.of(ctx, owner)
    claims = plan_claims(owner, owned, ctx.cache(POD).list(owner["metadata"]["namespace"]))
    for pod in claims.adopt:
        if fits(pod):
            references = [*(pod["metadata"].get("ownerReferences") or ()), owner_reference(owner)]
            owned.append(await _set_owners(ctx, pod, references))
    for pod in claims.release:
        uid = owner["metadata"]["uid"]
        await _set_owners(ctx, pod, [r for r in pod["metadata"]["ownerReferences"] if r["uid"] != uid])
        owned = [other for other in owned if other is not pod]
    return owned


async def _set_owners(ctx: Context, pod: Object, references: Sequence[dict[str, Any]]) -> Object:
    metadata = pod["metadata"]
    # The uid and version guard against a Pod that changed hands meanwhile.
    guard = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    patch = {"metadata": {**guard, "ownerReferences": list(references) or None}}
    key = key_of(pod)
    return await ctx.client.patch(POD, key.name, key.namespace, patch)
