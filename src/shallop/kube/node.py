"""What an API server asks of the node where a Pod runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol

from shallop.kube.objects import Object

__all__ = ["NodeApi"]


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
