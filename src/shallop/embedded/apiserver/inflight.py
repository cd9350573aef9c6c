"""How many requests a user may send and have under way, and for how long: one client must not starve the others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from shallop.embedded.apiserver.requests import MASTERS, User
from shallop.errors import TimeoutStatusError, TooManyRequestsError

__all__ = ["InFlight"]

# As a real API server has them: 400 reads and 200 writes at once, a minute for each.
_MAX_REQUESTS = 600
_MAX_REQUESTS_PER_USER = 200
_MAX_STREAMS_PER_USER = 2000
_TIMEOUT_S = 60.0
# Far above what clients allow themselves (client-go: 5 a second if nobody asks for more): a loop out of control.
_REQUESTS_PER_S = 500.0
_BURST = 2000.0
_KNOWN_USERS = 1000


class InFlight:
    """
    Counts requests under way, streams (watches, logs) apart from the rest.

    Administrators are bound by the total only: they are the ones who must be able to repair.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, timeout_s: float = _TIMEOUT_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # User -> requests that are left, and when that was counted.
        self._left: dict[str, tuple[float, float]] = {}
        self._requests: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._total = 0
        self.timeout_s = timeout_s

    def request(self, user: User) -> AbstractAsyncContextManager[None]:
        """
        Enter it with the task that answers the request.

        Raises:
            TooManyRequestsError: too many are under way; the client should wait a second.
            TimeoutStatusError: the request took longer than a minute.
        """
        return _Request(self, user)

    def begin(self, user: User) -> None:
        if MASTERS not in user.groups:
            self._take(user)
            if self._requests[user.name] >= _MAX_REQUESTS_PER_USER:
                raise _too_many("requests", user)
        if self._total >= _MAX_REQUESTS:
            raise _too_many("requests", user)
        self._total += 1
        self._requests[user.name] += 1

    def _take(self, user: User) -> None:
        """Take one of the requests that a user has left."""
        now = self._clock()
        left, counted = self._left.get(user.name, (_BURST, now))
        left = min(_BURST, left + (now - counted) * _REQUESTS_PER_S)
        if left < 1:
            message = (
                f'user "{user.name}" sends more than {_REQUESTS_PER_S:g} requests a second, please try again later.'
            )
            raise TooManyRequestsError(message, details={"retryAfterSeconds": 1})
        if len(self._left) > _KNOWN_USERS:
            # Whoever has not asked for so long has a whole burst again.
            self._left = {name: one for name, one in self._left.items() if now - one[1] < _BURST / _REQUESTS_PER_S}
        self._left[user.name] = (left - 1, now)

    def end(self, user: User) -> None:
        self._total -= 1
        _release(self._requests, user.name)

    @asynccontextmanager
    async def stream(self, user: User) -> AsyncIterator[None]:
        """
        Raises:
            TooManyRequestsError: the user has too many watches open.
        """
        if self._streams[user.name] >= _MAX_STREAMS_PER_USER and MASTERS not in user.groups:
            raise _too_many("watches", user)
        self._streams[user.name] += 1
        try:
            yield
        finally:
            _release(self._streams, user.name)


class _Request:
    """One request under way: asyncio.timeout and counts in one object, because every request pays for it."""

    __slots__ = ("_cancelling", "_expired", "_limits", "_task", "_timer", "_user")

    def __init__(self, limits: InFlight, user: User) -> None:
        self._limits, self._user = limits, user
        self._expired = False

    async def __aenter__(self) -> None:
        self._limits.begin(self._user)
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._timer = task.get_loop().call_later(self._limits.timeout_s, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()

    async def __aexit__(self, type_: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._timer.cancel()
        self._limits.end(self._user)
        if self._expired and self._task.uncancel() <= self._cancelling and type_ is asyncio.CancelledError:
            message = f"Timeout: request did not complete within {self._limits.timeout_s:g} s"
            raise TimeoutStatusError(message, details={}) from error


def _release(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]


def _too_many(what: str, user: User) -> TooManyRequestsError:
    message = f'too many {what} of user "{user.name}" are under way, please try again later.'
    return TooManyRequestsError(message, details={"retryAfterSeconds": 1})
