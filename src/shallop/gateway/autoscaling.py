"""
How many Pods a revision should have; pure.

Source: Knative Serving 1.x, autoscaler: stable and panic windows, rates, delays; its annotations and their defaults.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from shallop.gateway.routes import parse_duration
from shallop.kube.objects import Object, annotations_of

__all__ = ["Policy", "Scaler", "parse_policy"]

PREFIX = "autoscaling.knative.dev/"
_MAX_UP_RATE, _MAX_DOWN_RATE = 1000.0, 2.0
_DEFAULT_TARGETS = {"concurrency": 100.0, "rps": 200.0}
_UTILIZATION = 70.0


class Policy(NamedTuple):
    """
    What a PodAutoscaler asks for.

    Args:
        metric: ``concurrency`` or ``rps``.
        target: of the metric, per Pod.
        maximum: 0 is no bound.
        panic_threshold: panic begins when the panic window wants so many times the ready Pods.
        retention_s: the last Pod is kept so long after the stable window.
        activation: a revision that is not at zero has at least so many Pods.
    """

    metric: str = "concurrency"
    target: float = 70.0
    minimum: int = 0
    maximum: int = 0
    window_s: float = 60.0
    panic_s: float = 6.0
    panic_threshold: float = 2.0
    delay_s: float = 0.0
    retention_s: float = 0.0
    initial: int = 1
    activation: int = 1
    reachable: bool = True

    def clamp(self, pods: int) -> int:
        return max(self.minimum, min(pods, self.maximum) if self.maximum else pods)


def parse_policy(autoscaler: Object) -> Policy:
    """
    Read a PodAutoscaler: its annotations and its containerConcurrency.

    A revision that no route names is scaled to zero, whatever its minimum.
    """
    notes, spec = annotations_of(autoscaler), autoscaler.get("spec") or {}
    metric = _note(notes, "metric") or "concurrency"
    limit = int(spec.get("containerConcurrency") or 0)
    target = _number(notes, "target", float(limit) if limit and metric == "concurrency" else _DEFAULT_TARGETS[metric])
    utilization = _number(notes, "target-utilization-percentage", _UTILIZATION)
    window_s = parse_duration(_note(notes, "window")) or 60.0
    unreachable = spec.get("reachability") == "Unreachable"
    return Policy(
        metric=metric,
        target=max(0.01, target * utilization / 100),
        minimum=0 if unreachable else int(_number(notes, "min-scale", 0)),
        maximum=int(_number(notes, "max-scale", 0)),
        window_s=window_s,
        panic_s=window_s * _number(notes, "panic-window-percentage", 10.0) / 100,
        panic_threshold=_number(notes, "panic-threshold-percentage", 200.0) / 100,
        delay_s=parse_duration(_note(notes, "scale-down-delay")),
        retention_s=parse_duration(_note(notes, "scale-to-zero-pod-retention-period")),
        initial=int(_number(notes, "initial-scale", 1)),
        activation=int(_number(notes, "activation-scale", 1)),
        reachable=not unreachable,
    )


def _note(notes: Mapping[str, str], name: str) -> str:
    """Read an annotation in either of its spellings: ``min-scale``, ``minScale``."""
    first, *rest = name.split("-")
    return notes.get(PREFIX + name) or notes.get(PREFIX + first + "".join(map(str.capitalize, rest))) or ""


def _number(notes: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(_note(notes, name) or default)
    except ValueError:
        return default


class Scaler:
    """Decides for one revision, from samples of its load; a clock in seconds is given with each."""

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, float, float]] = deque()
        self._panic_until: float | None = None
        self._panic_pods = 0
        self._wants: deque[tuple[float, int]] = deque()
        # When there was work last, or the first Pod became ready: an idle time begins there.
        self._active = now
        self._was_ready = False
        self._initialized = False

    def record(self, now: float, value: float, seconds: float) -> None:
        """Add a sample: ``value`` summed over ``seconds`` (requests, or request-seconds)."""
        self._samples.append((now, value, seconds))
        if value > 0:
            self._active = now

    def decide(self, now: float, policy: Policy, *, current: int, ready: int, waiting: int) -> int:
        """
        Return how many Pods there should be.

        Args:
            current: Pods that were asked for.
            ready: Pods that can take requests now.
            waiting: requests under way or waiting.
        """
        if ready and not self._was_ready:
            self._was_ready, self._initialized, self._active = True, True, now
        if not current:
            self._was_ready = False
        if waiting:
            self._active = now
        while self._samples and self._samples[0][0] <= now - policy.window_s:
            self._samples.popleft()
        stable = self._average(now, policy.window_s)
        panic = self._average(now, policy.panic_s)
        # Before the first samples the requests that wait are the measure.
        wanted = max(math.ceil(stable / policy.target), int(waiting > 0))
        panic_wanted = math.ceil(panic / policy.target)
        wanted = self._limit_rate(wanted, max(ready, 1))
        wanted = self._panic(now, policy, wanted, panic_wanted, ready)
        if wanted:
            wanted = max(wanted, policy.activation)
        wanted = self._delay(now, policy, wanted)
        if current and policy.reachable and not self._initialized:
            wanted = max(wanted, policy.initial)
        wanted = policy.clamp(wanted)
        if wanted == 0 and current:
            # A Pod that still loads its model is not idle; the last one stays for a window without any request.
            idle = now - self._active >= policy.window_s + policy.retention_s
            return 0 if idle and (self._was_ready or not policy.reachable) else 1
        return wanted

    def _limit_rate(self, wanted: int, ready: int) -> int:
        return int(min(max(wanted, ready // _MAX_DOWN_RATE), ready * _MAX_UP_RATE))

    def _average(self, now: float, window_s: float) -> float:
        inside = [(value, seconds) for at, value, seconds in self._samples if at > now - window_s]
        seconds = sum(seconds for _, seconds in inside)
        return sum(value for value, _ in inside) / seconds if seconds else 0.0

    def _panic(self, now: float, policy: Policy, wanted: int, panic_wanted: int, ready: int) -> int:
        if panic_wanted / max(ready, 1) >= policy.panic_threshold:
            self._panic_until = now + policy.window_s
        if self._panic_until is None or now >= self._panic_until:
            self._panic_until, self._panic_pods = None, 0
            return wanted
        self._panic_pods = max(self._panic_pods, wanted, panic_wanted, ready)
        return self._panic_pods

    def _delay(self, now: float, policy: Policy, wanted: int) -> int:
        if not policy.delay_s:
            return wanted
        self._wants.append((now, wanted))
        while self._wants[0][0] < now - policy.delay_s:
            self._wants.popleft()
        return max(pods for _, pods in self._wants)
