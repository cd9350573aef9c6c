"""Whose selector a Pod matches."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.workloads.selecting import Selectors
from shallop.kube.objects import Key
from shallop.kube.selectors import match_selector

LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3)
EXPRESSION = st.fixed_dictionaries(
    {"key": st.sampled_from("abc"), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
)
SELECTOR = st.fixed_dictionaries(
    {}, optional={"matchLabels": LABELS, "matchExpressions": st.lists(EXPRESSION, max_size=2)}
)


@given(st.lists(st.tuples(st.sampled_from("mn"), st.sampled_from("123"), st.none() | SELECTOR)), LABELS)
def test_the_same_are_found_as_by_looking_at_each(steps: list[tuple[str, str, Any]], labels: dict[str, str]) -> None:
    selectors, known = Selectors(), dict[Key, Any]()
    for namespace, name, selector in steps:
        key = Key(namespace, name)
        if selector is None:
            selectors.drop(key)
            known.pop(key, None)
        else:
            selectors.put(key, selector)
            known[key] = selector
    pod = {"metadata": {"namespace": "m", "labels": labels}}
    wanted = {key for key, selector in known.items() if key.namespace == "m" and match_selector(selector, labels)}
    found = selectors.matching(pod)
    assert set(found) == wanted and len(found) == len(wanted)
    assert set(selectors.keys()) == set(known)
