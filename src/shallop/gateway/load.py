"""How much work each autoscaled Service has, measured where it passes: requests and concurrency."""

from __future__ import annotations

from shallop.gateway.routes import Endpoint

__all__ = ["Load"]


class Load:
    """
    The requests of one Service, those that wait for a Pod included.

    Args:
        limit: requests that one Pod may work on at once (``containerConcurrency``); 0 is no limit.
    """

    __slots__ = ("_area", "_requests", "_since", "inflight", "limit", "working")

    def __init__(self, now: float, limit: int = 0) -> None:
        self.limit = limit
        self.inflight = 0
        self.working: dict[Endpoint, int] = {}
        self._requests = 0
        self._area = 0.0
        self._since = now

    def enter(self, now: float) -> None:
        self._advance(now)
        self.inflight += 1
        self._requests += 1

    def leave(self, now: float) -> None:
        self._advance(now)
        self.inflight -= 1

    def _advance(self, now: float) -> None:
        self._area += self.inflight * (now - self._since)
        self._since = now

    def sample(self, now: float) -> tuple[float, int]:
        """Return the sum of request-seconds and the count of requests since the last sample."""
        self._advance(now)
        area, requests = self._area, self._requests
        self._area, self._requests = 0.0, 0
        return area, requests

    def begin(self, endpoint: Endpoint) -> None:
        self.working[endpoint] = self.working.get(endpoint, 0) + 1

    def end(self, endpoint: Endpoint) -> None:
        left = self.working.get(endpoint, 0) - 1
        if left > 0:
            self.working[endpoint] = left
        else:
            self.working.pop(endpoint, None)

    def full(self) -> set[Endpoint]:
        """Return the endpoints that have all the work that they may have."""
        return {endpoint for endpoint, count in self.working.items() if count >= self.limit} if self.limit else set()
