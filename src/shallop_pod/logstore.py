"""
Logs of requests and answers as files: in a folder or in a bucket, one record or many in each.

A file is ``{path of the URL}/{namespace}/{service}/{component}/{storage.path}/{id}-{request|response}.{format}``; of
several records ``{id of the first}-batch.{format}``. Formats are json (one record an object, several an array; bytes
in base64), csv and parquet (package pyarrow). A marshaller, a service of the user's, may make the files instead: it
gets the array by POST and names the extension in ``X-Log-Marshal-Extension``.

Requests never wait for it: what does not fit into the queue, or cannot be stored in three tries, is dropped and
counted.

Source: KServe 0.21 agent, blob sinks.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from shallop_pod.objectstores import put_request, ssl_context

__all__ = ["Record", "StoreOptions", "StoredLog", "marshal", "store_for"]

_QUEUE = 1000
_TRIES = 3
_TIMEOUT_S = 10.0
_CONTENT_TYPES = {"json": "application/json", "csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
Store = Callable[[str, bytes, str], None]
"""Stores a file: key, content, content type; raises OSError when it cannot."""


class Record(NamedTuple):
    """One request or answer; names as KServe's, in its order."""

    url: str
    bytes: bytes
    contentType: str
    reqType: str
    id: str
    sourceUri: str
    inferenceService: str
    namespace: str
    component: str
    endpoint: str
    metadata: Mapping[str, Sequence[str]]
    annotations: Mapping[str, str]
    certName: str = ""
    tlsSkipVerify: bool = False


class StoreOptions(NamedTuple):
    """Where files go and what is in each; ``batch_interval_s`` is how long a record waits for others."""

    url: str
    path: str
    format: str
    batch_size: int
    batch_interval_s: float
    marshaller_url: str


def store_for(url: str, environ: Mapping[str, str]) -> Store:
    """
    Return what stores files below a ``file://`` or ``s3://`` URL.

    Raises:
        ValueError: another one.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return lambda key, body, _: _write(urllib.parse.unquote(parts.path), key, body)
    if parts.scheme != "s3":
        raise ValueError(f"{url}: logs are stored below file:// and s3:// only")
    prefix, context = urllib.parse.unquote(parts.path).strip("/"), ssl_context(environ)

    def put(key: str, body: bytes, content_type: str) -> None:
        name = f"{prefix}/{key}" if prefix else key
        request = put_request(f"s3://{parts.netloc}/{urllib.parse.quote(name)}", environ, body, content_type)
        urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context).close()

    return put


def _write(root: str, key: str, body: bytes) -> None:
    target = os.path.join(root, key)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = os.path.join(os.path.dirname(target), f".{uuid.uuid4().hex}")
    with open(part, "wb") as file:
        file.write(body)
    os.replace(part, target)


def marshal(records: Sequence[Record], format_: str) -> bytes:
    """Return the content of a file."""
    if format_ == "json":
        objects = [_plain(record) | {"bytes": base64.b64encode(record.bytes).decode()} for record in records]
        return json.dumps(objects[0] if len(objects) == 1 else objects).encode()
    rows = [_plain(record) | {name: json.dumps(getattr(record, name)) for name in _MAPS} for record in records]
    if format_ == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, Record._fields)
        writer.writeheader()
        writer.writerows(row | {"bytes": row["bytes"].decode(errors="replace")} for row in rows)
        return text.getvalue().encode()
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in Record._fields}
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


_MAPS = ("metadata", "annotations")


def _plain(record: Record) -> dict[str, Any]:
    fields = record._asdict()
    return fields | {name: dict(fields[name]) for name in _MAPS}


class StoredLog:
    """
    Stores records in the background.

    Args:
        folder: of the component's files, below that of the URL.
    """

    def __init__(self, options: StoreOptions, folder: str, store: Store) -> None:
        self._options = options
        self._folder = "/".join(part for part in (folder, options.path.strip("/")) if part)
        self._store = store
        self._records: queue.Queue[Record | None] = queue.Queue(_QUEUE)
        self._lock = threading.Lock()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Take a record, or drop it where there is no room."""
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self.drop(1)

    def drain(self, seconds: float) -> None:
        """Store what was taken so far and take no more; waits so long at most."""
        try:
            self._records.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def drop(self, count: int) -> None:
        """Count records that cannot be stored."""
        with self._lock:
            self.dropped += count

    def _run(self) -> None:
        ended = False
        while not ended:
            first = self._records.get()
            if first is None:
                return
            records, until = [first], time.monotonic() + self._options.batch_interval_s
            while len(records) < self._options.batch_size:
                try:
                    found = self._records.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if found is None:
                    ended = True
                    break
                records.append(found)
            self._keep(records)

    def _keep(self, records: Sequence[Record]) -> None:
        try:
            body, extension = self._marshalled(records)
            kind = records[0].reqType.rpartition(".")[2] if len(records) == 1 else "batch"
            name = f"{urllib.parse.quote(records[0].id, safe='')}-{kind}.{extension}"
            key, content_type = f"{self._folder}/{name}", _CONTENT_TYPES.get(extension, "application/octet-stream")
            for attempt in range(_TRIES):
                try:
                    self._store(key, body, content_type)
                    return
                except OSError as error:
                    if isinstance(error, urllib.error.HTTPError):
                        error.close()
                    if attempt == _TRIES - 1:
                        raise
                    time.sleep(0.2 * 4**attempt)
        # A log that cannot be written must not end the log, whatever a library says of it.
        except Exception as error:
            if not self.dropped:
                print(f"logger: {self._options.url}: {error}", file=sys.stderr, flush=True)
            self.drop(len(records))

    def _marshalled(self, records: Sequence[Record]) -> tuple[bytes, str]:
        if not self._options.marshaller_url:
            return marshal(records, self._options.format), self._options.format
        objects = [_plain(record) | {"bytes": base64.b64encode(record.bytes).decode()} for record in records]
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._options.marshaller_url, json.dumps(objects).encode(), headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            extension = "".join(c for c in answer.headers.get("X-Log-Marshal-Extension") or "json" if c.isalnum())
            return answer.read(), extension or "json"
