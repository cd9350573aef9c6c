"""``pods/NAME/log``: query parameters to what the node understands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from shallop.embedded.apiserver.requests import parse_bool, parse_int
from shallop.errors import BadRequestError, FieldError, InvalidError, UnavailableError
from shallop.kube.node import NodeApi
from shallop.kube.objects import Object, parse_time

__all__ = ["choose_container", "open_logs"]

# A follower of a silent container gets its response head after this time.
_FIRST_CHUNK_S = 0.1
# Annotation, plus a name: the log of a container of that name, which the Pod does not have, is another one's.
LOG_OF = "log-of.shallop.dev/"


async def open_logs(node: NodeApi | None, pod: Object, query: Mapping[str, list[str]]) -> AsyncIterator[bytes] | None:
    """
    Start reading a container's log; None = the Pod is on no node yet, there is nothing to read.

    Waits a moment for the first chunk, so that a refusal of the node still becomes an HTTP status.

    Raises:
        BadRequestError: no such container, or nothing runs yet.
        UnavailableError: no node is there to ask.
    """

    def first(name: str) -> str:
        return (query.get(name) or [""])[0]

    name = pod["metadata"]["name"]
    container = choose_container(pod, first("container"))
    _check_numbers(name, first)
    if not (pod.get("spec") or {}).get("nodeName"):
        return None
    if node is None:
        raise UnavailableError(f"pod {name}: the node that runs it is not connected; start shallop with its node")
    since_time = first("sinceTime")
    try:
        time = parse_time(since_time) if since_time else None
    except ValueError as error:
        raise BadRequestError(f"sinceTime: {error}") from error
    chunks = node.read_logs(
        pod,
        container,
        follow=parse_bool(first("follow")),
        previous=parse_bool(first("previous")),
        tail_lines=_number(first("tailLines")),
        since_s=_number(first("sinceSeconds")),
        since_time=time,
        timestamps=parse_bool(first("timestamps")),
        limit_bytes=_number(first("limitBytes")),
    )
    return await _begin(chunks)


async def _begin(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return the same chunks once the first one is there, or the reader is found to wait for it."""
    first = asyncio.create_task(_read_first(chunks))
    try:
        await asyncio.wait({first}, timeout=_FIRST_CHUNK_S)
    except asyncio.CancelledError:
        first.cancel()
        raise
    if first.done():
        first.result()
    return _continue(first, chunks)


async def _read_first(chunks: AsyncIterator[bytes]) -> bytes:
    """The first chunk; empty at the end."""
    return await anext(chunks, b"")


async def _continue(first: asyncio.Task[bytes], chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield await first
        async for chunk in chunks:
            yield chunk
    finally:
        first.cancel()


def _number(text: str) -> int | None:
    return parse_int(text) if text else None


def choose_container(pod: Object, wanted: str) -> str:
    """Return the container that is meant: the named one, the only one or the declared default."""
    spec = pod.get("spec") or {}
    name = pod["metadata"]["name"]
    names = [c["name"] for c in spec.get("containers") or ()]
    init = [c["name"] for c in spec.get("initContainers") or ()]
    ephemeral = [c["name"] for c in spec.get("ephemeralContainers") or ()]
    annotations = pod["metadata"].get("annotations") or {}
    if wanted:
        wanted = annotations.get(LOG_OF + wanted, wanted)
        if wanted not in (*names, *init, *ephemeral):
            raise BadRequestError(f"container {wanted} is not valid for pod {name}")
        return wanted
    default = annotations.get("kubectl.kubernetes.io/default-container", "")
    if len(names) == 1:
        return str(names[0])
    if default in names:
        return str(default)
    text = f"a container name must be specified for pod {name}, choose one of: [{' '.join(names)}]"
    if init:
        text += f" or one of the init containers: [{' '.join(init)}]"
    raise BadRequestError(text)


def _check_numbers(pod: str, first: Callable[[str], str]) -> None:
    problems = []
    for name, least in (("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)):
        text = first(name)
        if text and parse_int(text) < least:
            bound = "greater than or equal to 0" if least == 0 else "greater than 0"
            problems.append(FieldError.invalid(name, parse_int(text), f"must be {bound}"))
    if first("sinceSeconds") and first("sinceTime"):
        text = "at most one of `sinceTime` or `sinceSeconds` may be specified"
        problems.append(FieldError.forbidden("[]", text))
    if problems:
        raise InvalidError.of("PodLogOptions", "", pod, problems)
