"""The autoscaler's decisions over minutes, replayed in no time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from shallop.gateway.autoscaling import Policy, Scaler, parse_policy
from shallop.gateway.load import Load
from shallop.kube.objects import Object

TICK_S = 2.0


def autoscaler(concurrency: int = 0, reachability: str = "Reachable", **notes: str) -> Object:
    annotations = {f"autoscaling.knative.dev/{key.replace('_', '-')}": value for key, value in notes.items()}
    spec = {"containerConcurrency": concurrency, "reachability": reachability}
    return {"metadata": {"annotations": annotations}, "spec": spec}


class Replay:
    """Plays time against a Scaler whose Pods are ready one tick after they were asked for."""

    def __init__(self, policy: Policy, pods: int = 1) -> None:
        self.policy, self.now, self.current, self.ready = policy, 0.0, pods, pods
        self.scaler = Scaler(0.0)
        self.history: list[int] = []

    def run(self, seconds: float, concurrency: Callable[[float], float] = lambda _: 0.0) -> list[int]:
        """Play with so many requests at once; returns the wishes of these ticks."""
        start = len(self.history)
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            load = concurrency(self.now)
            self.scaler.record(self.now, load * TICK_S, TICK_S)
            wish = self.scaler.decide(
                self.now, self.policy, current=self.current, ready=self.ready, waiting=int(load > 0)
            )
            self.ready, self.current = self.current, wish
            self.history.append(wish)
        return self.history[start:]


def test_the_annotations_of_knative_are_read_in_both_spellings() -> None:
    policy = parse_policy(autoscaler(minScale="2", max_scale="7", target="10", window="30s", scale_down_delay="1m"))
    assert (policy.minimum, policy.maximum, policy.target, policy.window_s, policy.delay_s) == (2, 7, 7.0, 30.0, 60.0)
    assert parse_policy(autoscaler()).target == 70.0
    assert parse_policy(autoscaler(metric="rps")).target == 140.0
    assert parse_policy(autoscaler(concurrency=10)).target == 7.0
    assert parse_policy(autoscaler(target="much")).target == 70.0


def test_no_route_means_no_minimum() -> None:
    assert parse_policy(autoscaler(reachability="Unreachable", min_scale="3")).minimum == 0


def test_steady_load_gets_the_pods_it_needs() -> None:
    replay = Replay(Policy(target=7.0))
    assert replay.run(120, lambda _: 20.0)[-1] == 3


def test_idle_goes_to_zero_after_a_whole_window_and_not_before() -> None:
    replay = Replay(Policy(window_s=60.0))
    replay.run(20, lambda _: 1.0)
    assert set(replay.run(56)) == {1}
    assert replay.run(8)[-1] == 0


def test_a_minimum_and_a_maximum_hold() -> None:
    assert set(Replay(Policy(minimum=2), pods=2).run(200)) == {2}
    assert max(Replay(Policy(target=1.0, maximum=3)).run(60, lambda _: 50.0)) == 3


def test_a_burst_is_met_in_panic_and_nothing_is_taken_away_during_it() -> None:
    replay = Replay(Policy(target=10.0))
    replay.run(60, lambda _: 5.0)
    burst = replay.run(10, lambda _: 100.0)
    assert burst[3] >= 10, "the stable window alone would want 2"
    calm = replay.run(50, lambda _: 5.0)
    assert min(calm) == max(burst)
    assert replay.run(120, lambda _: 5.0)[-1] == 1


def test_pods_are_taken_away_by_half_at_most() -> None:
    replay = Replay(Policy(target=1.0, window_s=6.0, panic_s=0.6), pods=16)
    replay.run(20, lambda _: 16.0)
    wishes = [16, *replay.run(60, lambda _: 0.5)]
    assert all(after >= before // 2 for before, after in pairwise(wishes))
    assert wishes[-1] == 1


def test_a_request_that_waits_starts_the_first_pod_at_once() -> None:
    assert Scaler(0.0).decide(0.1, Policy(), current=0, ready=0, waiting=1) == 1


def test_a_pod_that_still_loads_its_model_is_not_idle() -> None:
    scaler = Scaler(0.0)
    assert scaler.decide(500.0, Policy(window_s=6.0), current=1, ready=0, waiting=0) == 1
    assert scaler.decide(501.0, Policy(window_s=6.0), current=1, ready=1, waiting=0) == 1
    assert scaler.decide(508.0, Policy(window_s=6.0), current=1, ready=1, waiting=0) == 0


def test_a_revision_in_reserve_goes_although_it_never_was_ready() -> None:
    assert Scaler(0.0).decide(61.0, Policy(reachable=False), current=1, ready=0, waiting=0) == 0


def test_concurrency_is_weighted_by_time() -> None:
    load = Load(0.0)
    load.enter(0.0)
    load.enter(1.0)
    load.leave(3.0)
    assert load.sample(4.0) == (1 + 2 * 2 + 1, 2)
    assert load.sample(6.0) == (2.0, 0)


def test_an_endpoint_is_full_at_its_limit() -> None:
    load = Load(0.0, limit=2)
    for _ in range(2):
        load.begin(("a", 1))
    load.begin(("b", 1))
    assert load.full() == {("a", 1)}
    load.end(("a", 1))
    assert load.full() == set()
