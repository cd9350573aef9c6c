"""The arithmetic of rollouts: bounds that hold for every sequence of Pod states."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.workloads.rollout import Bounds, Replicas, bounds_of, plan_recreate, plan_rolling, plan_scaling


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (4, "25%", "25%", Bounds(1, 1)),
        (1, "25%", "25%", Bounds(1, 0)),
        (10, "30%", "30%", Bounds(3, 3)),
        (3, "25%", "25%", Bounds(1, 0)),
        (5, 0, 0, Bounds(0, 1)),
        (2, 0, 5, Bounds(0, 2)),
    ],
)
def test_bounds(replicas: int, surge: int | str, unavailable: int | str, expected: Bounds) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    assert bounds_of(replicas, strategy) == expected


def test_a_first_rollout_takes_all_replicas_at_once() -> None:
    assert plan_rolling(3, Bounds(1, 0), Replicas("new", 0), []) == {"new": 3}


def test_a_rolling_update_grows_first() -> None:
    assert plan_rolling(4, Bounds(1, 1), Replicas("new", 0), [Replicas("old", 4, 4)]) == {"new": 1}


def test_pods_that_serve_nobody_go_first() -> None:
    old = [Replicas("older", 2, 2), Replicas("broken", 1, 0)]
    assert plan_rolling(3, Bounds(0, 1), Replicas("new", 0), old) == {"broken": 0}


def test_recreate_ends_old_pods_before_it_starts_new_ones() -> None:
    assert plan_recreate(2, Replicas("new", 0), [Replicas("old", 2, 2, alive=2)]) == {"old": 0}
    assert plan_recreate(2, Replicas("new", 0), [Replicas("old", 0, 0, alive=1)]) is None
    assert plan_recreate(2, Replicas("new", 0), [Replicas("old", 0)]) == {"new": 2}


def test_scaling_in_the_middle_of_a_rollout_is_proportional() -> None:
    changes = plan_scaling(15, Bounds(3, 0), Replicas("new", 5, 5, 13), [Replicas("old", 8, 8, 13)])
    assert sum(changes.values()) == 18
    assert changes["old"] > changes["new"]


@dataclass
class World:
    """ReplicaSets whose Pods come up, fail and vanish as hypothesis likes."""

    replicas: int
    bounds: Bounds
    wanted: dict[str, int]
    available: dict[str, int] = field(default_factory=dict)

    def view(self, name: str) -> Replicas:
        return Replicas(name, self.wanted[name], self.available.get(name, 0), self.replicas + self.bounds.surge)

    def step(self) -> bool:
        old = [self.view(name) for name in sorted(self.wanted) if name != "new"]
        changes = plan_rolling(self.replicas, self.bounds, self.view("new"), old)
        self.wanted |= changes
        for name, wanted in self.wanted.items():
            # A ReplicaSet deletes unavailable Pods first.
            self.available[name] = min(self.available.get(name, 0), wanted)
        return bool(changes)


worlds = st.integers(1, 12).flatmap(
    lambda replicas: st.builds(
        World,
        st.just(replicas),
        st.tuples(st.integers(0, 4), st.integers(0, replicas)).map(
            lambda pair: Bounds(pair[0], pair[1] if any(pair) else 1)
        ),
        st.integers(0, replicas).map(lambda a: {"old-a": a, "old-b": replicas - a, "new": 0}),
    )
)


@given(worlds, st.data())
def test_a_rolling_update_stays_within_its_bounds_and_ends(world: World, data: st.DataObject) -> None:
    world.available = {name: wanted for name, wanted in world.wanted.items() if name != "new"}
    most, least = world.replicas + world.bounds.surge, world.replicas - world.bounds.unavailable
    for _ in range(data.draw(st.integers(0, 30))):
        before = sum(world.available.values())
        world.step()
        assert sum(world.wanted.values()) <= most
        # A step alone never takes the last Pods that the bounds demand.
        assert sum(world.available.values()) >= min(before, least)
        name = data.draw(st.sampled_from(sorted(world.wanted)))
        world.available[name] = data.draw(st.integers(0, world.wanted[name]))
    for _ in range(200):
        changed = world.step()
        if not changed and world.available == world.wanted:
            break
        world.available = dict(world.wanted)
    assert world.wanted == {"old-a": 0, "old-b": 0, "new": world.replicas}


@given(
    st.integers(0, 20),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), min_size=1, max_size=5),
)
def test_scaling_gives_every_replica_a_place(replicas: int, surge: int, sizes: list[tuple[int, int]]) -> None:
    members = [Replicas(f"rs-{n}", wanted, 0, limit) for n, (wanted, limit) in enumerate(sizes)]
    result = {member.name: member.wanted for member in members}
    result |= plan_scaling(replicas, Bounds(surge, 0), members[0], members[1:])
    assert all(wanted >= 0 for wanted in result.values())
    active = sum(member.wanted > 0 for member in members)
    assert sum(result.values()) == (replicas if active <= 1 or not replicas else replicas + surge)
