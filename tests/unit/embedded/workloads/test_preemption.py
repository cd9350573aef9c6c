"""Who gives way to whom."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.workloads.preemption import Candidate, choose_victims

candidates = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=8)


@given(candidates, st.integers(1, 10), st.integers(0, 6))
def test_enough_and_no_more_of_the_less_important_ones_go(
    given_: list[tuple[int, int]], lacking: int, priority: int
) -> None:
    pods = [Candidate(number, p, {"cpu": Decimal(cpu)}) for number, (p, cpu) in enumerate(given_)]
    victims = choose_victims({"cpu": Decimal(lacking)}, priority, pods)
    available = sum(cpu for p, cpu in given_ if p < priority)
    if victims is None:
        assert available < lacking
        return
    freed = [int(pods[int(str(key))].amounts["cpu"]) for key in victims]
    assert all(given_[int(str(key))][0] < priority for key in victims)
    assert sum(freed) >= lacking
    assert all(sum(freed) - one < lacking for one in freed), "everyone who goes is needed"
