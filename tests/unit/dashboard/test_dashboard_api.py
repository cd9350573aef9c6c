"""The dashboard's own API over the real API server in memory, without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shallop.controller import Services
from shallop.dashboard import PART
from shallop.dashboard.api import DashboardApi
from shallop.dashboard.content import Reports
from shallop.dashboard.live import Live
from shallop.errors import NotFoundError
from shallop.kube.objects import Gvk, Object
from shallop.settings import Settings

Call = Callable[..., Any]


class OneService:
    """The reads of a client that knows one InferenceService, without a URL."""

    async def get(self, gvk: Gvk, name: str, namespace: str = "") -> Object:
        if name != "iris":
            raise NotFoundError(f'inferenceservices.serving.kserve.io "{name}" not found')
        return {"metadata": {"name": name, "namespace": namespace}}


@pytest.fixture
def services(tmp_path: Path) -> Services:
    settings = Settings(home=tmp_path, content_port=9082)
    return Services(settings, OneService(), None, lambda: datetime.now(UTC))  # type: ignore[arg-type]


def test_the_overview_says_where_things_are(services: Services, call: Call) -> None:
    answer = call(DashboardApi(services).routes(), "/ui/v1/overview")
    facts = json.loads(answer.body)
    assert facts["content_url"] == "http://127.0.0.1:9082"
    assert facts["kubeconfig"].endswith("/kubeconfig")
    assert facts["endpoints"] == {"total": 0, "ready": 0}
    assert answer.headers["cache-control"] == "no-store"


def test_an_unknown_path_is_an_error_that_names_it(services: Services, call: Call) -> None:
    answer = call(DashboardApi(services).routes(), "/ui/v1/nothing")
    assert answer.status == 404
    assert "/ui/v1/nothing" in json.loads(answer.body)["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/ui/v1/endpoints/team/none:predict", b"{}", 404, "not found"),
        ("/ui/v1/endpoints/team/iris:predict", b"{}", 503, "team/iris has no URL yet"),
        ("/ui/v1/endpoints/team/iris:predict?protocol=v9", b"{}", 400, "use v1 or v2"),
    ],
)
def test_a_prediction_that_cannot_be_sent_says_why(
    services: Services, call: Call, path: str, body: bytes, status: int, said: str
) -> None:
    answer = call(DashboardApi(services).routes(), path, "POST", body)
    assert answer.status == status
    assert said in json.loads(answer.body)["message"]


def test_predictions_are_not_made_by_get(services: Services, call: Call) -> None:
    assert call(DashboardApi(services).routes(), "/ui/v1/endpoints/team/iris:predict").status in (404, 405)


@pytest.mark.parametrize("id_", ["x", "..", "1x", "-1", "١", "1%2f..", "1/../2"])
def test_only_ids_lead_to_reports(tmp_path: Path, call: Call, id_: str) -> None:
    assert call(Reports(Settings(home=tmp_path)).routes(), f"/artifacts/{id_}/html").status == 404


def test_refusals_on_the_content_origin_are_sandboxed_too(tmp_path: Path, call: Call) -> None:
    headers = call(Reports(Settings(home=tmp_path)).routes(), "/artifacts/x/html").headers
    policy = headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts;")
    assert "allow-same-origin" not in policy
    assert headers["content-type"].startswith("text/plain")


def test_the_part_has_routes_on_both_origins(services: Services) -> None:
    assert PART.routes is not None
    assert PART.content is not None
    paths = [getattr(route, "path", "") for route in PART.routes(services)]
    assert "/" in paths
    assert [getattr(route, "path", "") for route in PART.content(services)] == ["/artifacts/{artifact_id}/html"]


def test_readers_are_told_each_kind_once_until_they_take_it() -> None:
    async def read() -> None:
        live = Live()
        with live.reading() as news:
            for kind in ("Pod", "InferenceService", "Pod"):
                live._tell(kind, None)
            await news.wait()
            assert news.take() == ["InferenceService", "Pod"]
            assert news.take() == []
        live._tell("Pod", None)
        assert news.take() == []

    asyncio.run(read())
