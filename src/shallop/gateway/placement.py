"""
A request that looks for a Pod: by weight, then in turn; in line where none can take it; elsewhere where one refuses.

What speaks a protocol (``proxy``, ``http2proxy``) derives from ``Placed`` and asks the endpoint that was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from shallop.controller.captures import MAX_BYTES, Capture
from shallop.gateway.load import Load
from shallop.gateway.plan import Captured
from shallop.gateway.routes import Backend, Endpoint, Route

if TYPE_CHECKING:
    from shallop.gateway.proxy import Gateway

__all__ = ["MAX_REPLAY", "Placed", "Recording"]

# A request up to this size is kept until the answer starts, so that a backend that closed a kept-alive connection
# under our hands costs nobody an error.
MAX_REPLAY = 1 << 20
_MAX_ATTEMPTS = 4
# Requests of one Service that wait for a Pod; as many as Knative's activator holds.
MAX_WAITING = 10_000


class Recording:
    """The bodies of a prediction while it passes; given up when one is too large."""

    __slots__ = ("captured", "request", "response", "size")

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.request: list[bytes | memoryview] = []
        self.response: list[bytes | memoryview] = []
        self.size = 0


class Placed:
    """One request after the other; ``begin_placement`` starts with the next one."""

    def __init__(self, gateway: Gateway, clock: Callable[[], float]) -> None:
        self._gateway = gateway
        self._clock = clock
        self._route: Route | None = None
        self._number = 0.0
        self._target: Backend | None = None
        self._load: Load | None = None
        self._endpoint: Endpoint | None = None
        self._refused: set[Endpoint] = set()
        self._attempts = 0
        self._waits = False
        self.recording: Recording | None = None

    def ask(self, endpoint: Endpoint) -> None:
        """Send the request there; a failure is told by ``retry``."""
        raise NotImplementedError

    def fail(self, status: int, message: str, *, retry_after_s: int = 0) -> None:
        """Answer with an error of the gateway's; ``status`` is that of HTTP."""
        raise NotImplementedError

    def note(self, *, request: bytes | memoryview = b"", response: bytes | memoryview = b"") -> None:
        """Keep a part of a body for those who watch models."""
        recording = self.recording
        if recording is None:
            return
        if request:
            recording.request.append(request)
        if response:
            recording.response.append(response)
        recording.size += len(request) + len(response)
        if recording.size > MAX_BYTES:
            self.recording = None
            self._gateway.captures.dropped += 1

    def hand_over(self, code: int, since: float) -> None:
        """Give a complete prediction to those who watch models."""
        recording, self.recording = self.recording, None
        if recording is None or self._target is None or self._route is None:
            return
        seen = recording.captured
        latency_s = self._clock() - since
        request, response = b"".join(recording.request), b"".join(recording.response)
        self._gateway.captures.put(
            Capture(
                # Routes of one InferenceService are told apart behind a dot.
                self._route.owner.partition(".")[0],
                self._target.service,
                seen.path,
                seen.request_id,
                time.time() - latency_s,
                latency_s,
                code,
                request,
                response,
                seen.content_type,
            )
        )

    def begin_placement(self, route: Route, number: float) -> None:
        """
        Take a new request.

        Args:
            number: of [0, 1); decides its share of a split.
        """
        self._route, self._number, self._attempts = route, number, 0
        if self._refused:
            self._refused.clear()

    def place(self) -> None:
        """Find an endpoint and ask it, or stand in line."""
        assert self._route is not None
        table = self._gateway.table
        target = table.choose(self._route, self._number, self._refused)
        if target is None:
            owner = self._route.owner
            self.fail(503, f"no ready endpoint behind route {owner}; see 'kubectl get pods,isvc -A'")
            return
        if target is not self._target:
            self.leave()
            self._target, self._load = target, self._gateway.loads.get(target.key)
            if self._load:
                self._load.enter(self._clock())
        avoid: Collection[Endpoint] = self._refused
        if self._load and self._load.limit:
            avoid = self._refused | self._load.full()
        endpoint = table.pick(target, avoid)
        if endpoint is None:
            self._wait(target)
            return
        self._endpoint = endpoint
        if self._load:
            self._load.begin(endpoint)
        self.ask(endpoint)

    def _wait(self, target: Backend) -> None:
        """Stand in line until a Pod of ``target`` can take the request."""
        self._waits = self._gateway.wait(self, target.key, ask_again=bool(self._refused))
        if not self._waits:
            said = f"{MAX_WAITING} requests wait for {target.namespace}/{target.service} already; try again later"
            self.fail(503, said, retry_after_s=1)

    def go_on(self) -> None:
        """A Pod may be able to take the request now."""
        self._waits = False
        self._refused.clear()
        self._attempts = 0
        self.place()

    def retry(self, why: str, refused: Endpoint | None = None) -> None:
        """
        Ask elsewhere.

        Args:
            refused: not to be asked again.
        """
        if refused:
            self._refused.add(refused)
        self._attempts += 1
        self._release_endpoint()
        if self._attempts < _MAX_ATTEMPTS:
            self.place()
        elif self._target and self._load:
            self._wait(self._target)
        else:
            self.fail(503, why)

    def _release_endpoint(self) -> None:
        if self._endpoint and self._load and self._target:
            self._load.end(self._endpoint)
            if self._load.limit:
                self._gateway.admit_soon(self._target.key)
        self._endpoint = None

    def leave(self) -> None:
        """The request is over for its target."""
        if self._target is None:
            return
        self._release_endpoint()
        if self._waits:
            self._waits = False
            self._gateway.stop_waiting(self, self._target.key)
        if self._load:
            self._load.leave(self._clock())
        self._target = self._load = None
