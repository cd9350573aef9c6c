"""The KFP REST API as the command line uses it: blocking calls, errors in words."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from shallop.errors import ApiError, ShallopError

__all__ = ["PipelinesClient"]

_TIMEOUT_S = 60
_LISTS = ("/runs", "/experiments", "/cache")
Json = dict[str, Any]


class PipelinesClient:
    """
    Calls one server.

    Args:
        url: its web origin, such as ``http://127.0.0.1:8080``.
        token: of the Kubernetes API; a server with several users asks for it.
        namespace: to work in, on such a server.
    """

    def __init__(self, url: str, token: str = "", namespace: str = "") -> None:
        self.url, self.namespace = url, namespace
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._base = f"{url}/apis/v2beta1"

    def call(self, method: str, path: str, body: Any = None, **query: str) -> Json:
        if self.namespace and path in _LISTS:
            query["namespace"] = self.namespace
        with self._open(method, path, body, query, _TIMEOUT_S) as answer:
            value: Json = json.load(answer)
        return value

    def text(self, path: str) -> str:
        with self._open("GET", path, None, {}, _TIMEOUT_S) as answer:
            return str(answer.read().decode(errors="replace"))

    def watch(self, run_id: str) -> Iterator[tuple[str, Any]]:
        """
        Yield the events of a run until it is over: ``run``, ``tasks``, ``end`` with their data.

        Raises:
            ShallopError: the server went away before that.
        """
        event = ""
        with self._open("GET", f"/runs/{run_id}:watch", None, {}, None) as stream:
            try:
                for line in stream:
                    text = line.decode().rstrip("\n")
                    if text.startswith("event: "):
                        event = text[7:]
                    elif text.startswith("data: "):
                        yield event, json.loads(text[6:])
            except (OSError, http.client.HTTPException):
                event = ""
        if event != "end":
            again = f"'shallop up' goes on with run {run_id}, 'shallop why {run_id[:8]}' shows it."
            raise ShallopError(f"{self.url}: the platform stopped while the run went on; {again}")

    def terminate_runs(self) -> None:
        """Stop all runs that are not over."""
        states = {"operation": "IN", "key": "state", "string_values": {"values": ["PENDING", "RUNNING"]}}
        found = self.call("GET", "/runs", filter=json.dumps({"predicates": [states]}), page_size="200")
        for run in found.get("runs", []):
            self.call("POST", f"/runs/{run['run_id']}:terminate")

    def find_run(self, wanted: str) -> str:
        """
        Return the id of a run that the user names by its id, the first characters of it, its name, or ``latest``.

        Raises:
            ShallopError: none or several.
        """
        runs = self.call("GET", "/runs", page_size="200", sort_by="created_at desc").get("runs", [])
        if wanted == "latest" and runs:
            return str(runs[0]["run_id"])
        found = [run for run in runs if run["run_id"].startswith(wanted)]
        found = found or [run for run in runs if run["display_name"] == wanted][:1]
        if len(found) > 1:
            raise ShallopError(f"run {wanted!r}: {len(found)} runs begin like this; write more of the id.")
        # Not among the newest: the server says whether there is one.
        return str(found[0]["run_id"] if found else self.call("GET", f"/runs/{quote(wanted, safe='')}")["run_id"])

    def _open(self, method: str, path: str, body: Any, query: dict[str, str], timeout: float | None) -> Any:
        url = f"{self._base}{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, self._headers, method=method)
        try:
            # Without the environment's proxies: the server is on this machine.
            return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise ApiError(_message_of(error.read(), error.code)) from None
        except OSError as error:
            raise ShallopError(f"{self.url}: {error}; is the platform running? See 'shallop status'.") from error


def _message_of(body: bytes, code: int) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {code}: {body[:200].decode(errors='replace')}"
