"""What an API server asks of the node where a Pod runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from shallop.kube.objects import Object

__all__ = ["Execution", "NodeApi", "Usage"]


class Execution(Protocol):
    """A process whose input and output one client has; ``close`` must be called in the end."""

    async def read(self, stream: int) -> bytes:
        """Return output of stream 1 (stdout, or the terminal) or 2 (stderr) when there is some; empty at its end."""
        ...

    async def write(self, data: bytes) -> None:
        """Pass on input; waits until the process takes it, and drops it when nobody can."""
        ...

    def end_input(self) -> None: ...

    def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal, in characters."""
        ...

    async def exit_code(self) -> int:
        """Return how it ended, as a shell says it; once all output was read."""
        ...

    def close(self) -> None:
        """Leave it: a process that was started for this client is hung up."""
        ...


class Usage(NamedTuple):
    """What a container or the machine uses: CPU on average over the window, memory at its end."""

    cpu_cores: float
    memory_bytes: int
    window_s: float


class NodeApi(Protocol):
    """Access to what only the node has; raises ``errors.ApiError``."""

    def read_logs(
        self,
        pod: Object,
        container: str,
        *,
        follow: bool = False,
        previous: bool = False,
        tail_lines: int | None = None,
        since_s: int | None = None,
        since_time: datetime | None = None,
        timestamps: bool = False,
        limit_bytes: int | None = None,
    ) -> AsyncIterator[bytes]:
        """Yield log text in chunks of whole lines; with ``follow`` until the container has ended."""
        ...

    async def execute(
        self, pod: Object, container: str, command: Sequence[str], *, stdin: bool, tty: bool
    ) -> Execution:
        """Start a command in a running container: in its namespaces, with its variables."""
        ...

    async def attach(self, pod: Object, container: str) -> Execution:
        """Join a running container: what it prints from now on, and its input if it was declared to have one."""
        ...

    async def dial(self, pod: Object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port inside a running Pod; OSError when nobody listens."""
        ...

    async def usage(self) -> Mapping[str, Usage]:
        """Return what each running container uses, by ``Pod uid/container``, and the whole machine by ""."""
        ...
