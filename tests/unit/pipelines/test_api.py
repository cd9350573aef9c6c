"""The v2beta1 routes over a database in a temporary folder, called in process; nothing drives the runs."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import anyio
import pytest
import yaml
from starlette.applications import Starlette

from shallop.controller import Services
from shallop.kube.client import Client
from shallop.pipelines import tables
from shallop.pipelines.api import routes
from shallop.pipelines.scheduler import Scheduler
from shallop.settings import Settings
from shallop.store.database import Database

BASE = "/apis/v2beta1"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return str(self.json["details"][0]["message"])


class Server:
    """Calls the routes; the clock moves one second per look at it."""

    def __init__(self, home: Path) -> None:
        self.database = Database(f"sqlite:///{home}/rows.db")
        self.database.migrate("pipelines", tables.MIGRATIONS)
        self.settings = Settings(home=home)
        self._time = datetime(2026, 1, 1, tzinfo=UTC)
        services = Services(self.settings, cast(Client, None), self.database, self._now)
        self.scheduler = Scheduler(services)
        self._app = Starlette(routes=list(routes(services)))

    def _now(self) -> datetime:
        self._time += timedelta(seconds=1)
        return self._time

    def wait(self, seconds: int) -> None:
        self._time += timedelta(seconds=seconds)

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        return self.send(method, path, content, "application/json", query)

    def send(self, method: str, path: str, content: bytes, content_type: str, query: dict[str, Any]) -> Answer:
        return anyio.run(self._call, method, BASE + path, content, content_type, query)

    def root(self, method: str, path: str, **query: Any) -> Answer:
        """Call what is not below ``/apis/v2beta1``."""
        return anyio.run(self._call, method, path, b"", "application/json", query)

    async def _call(self, method: str, path: str, content: bytes, content_type: str, query: dict[str, Any]) -> Answer:
        sent: list[dict[str, Any]] = []
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": urlencode(query).encode(),
            "headers": [(b"content-type", content_type.encode())],
        }

        bodies = [content]

        async def receive() -> dict[str, Any]:
            if not bodies:
                await anyio.sleep_forever()  # the client stays connected
            return {"type": "http.request", "body": bodies.pop()}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)  # type: ignore[arg-type]
        headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.database.close()


def spec(name: str = "greet", **parameters: dict[str, Any]) -> dict[str, Any]:
    """A pipeline with one container task."""
    return {
        "pipelineInfo": {"name": name},
        "schemaVersion": "2.1.0",
        "sdkVersion": "kfp-2.17.0",
        "root": {
            "inputDefinitions": {"parameters": parameters},
            "dag": {"tasks": {"echo": {"taskInfo": {"name": "echo"}, "componentRef": {"name": "comp-echo"}}}},
        },
        "components": {"comp-echo": {"executorLabel": "exec-echo"}},
        "deploymentSpec": {"executors": {"exec-echo": {"container": {"image": "alpine", "command": ["echo", "hi"]}}}},
    }


def upload(server: Server, path: str, filename: str, content: bytes, **query: Any) -> Answer:
    head = f'--b\r\nContent-Disposition: form-data; name="uploadfile"; filename="{filename}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--b--\r\n"
    return server.send("POST", path, body, "multipart/form-data; boundary=b", query)


def where(operation: Any, key: str, **value: Any) -> str:
    return json.dumps({"predicates": [{"operation": operation, "key": key, **value}]})


def test_healthz_says_single_user(server: Server) -> None:
    assert server.call("GET", "/healthz").json["multi_user"] is False


# ---- experiments


def test_an_experiment_is_made_read_and_listed(server: Server) -> None:
    made = server.call("POST", "/experiments", {"displayName": "a", "description": "d", "namespace": "kubeflow"}).json
    assert made["storage_state"] == "AVAILABLE"
    assert made["created_at"].startswith("2026-01-01T")
    assert server.call("GET", f"/experiments/{made['experiment_id']}").json == made
    listed = server.call("GET", "/experiments", filter=where(1, "display_name", stringValue="a"), namespace="").json
    assert listed == {"experiments": [made], "total_size": 1}


def test_an_experiment_needs_a_name_of_its_own(server: Server) -> None:
    server.call("POST", "/experiments", {"display_name": "a"})
    again = server.call("POST", "/experiments", {"display_name": "a"})
    assert (again.status, again.json["code"]) == (409, 6)
    assert "already exists" in again.detail
    assert server.call("POST", "/experiments", {"display_name": " "}).status == 400
    assert server.call("POST", "/experiments", {"display_name": "x" * 129}).status == 400


def test_what_is_not_there_is_404(server: Server) -> None:
    for path in (
        "/experiments/x",
        "/pipelines/x",
        "/pipelines/names/x",
        "/pipelines/x/versions/y",
        "/runs/x",
        "/artifacts/1",
    ):
        answer = server.call("GET", path)
        assert (answer.status, answer.json["code"]) == (404, 5), path
    assert server.call("GET", "/nothing").status == 404


def test_the_default_experiment_stays(server: Server) -> None:
    server.call("POST", "/runs", {"display_name": "r", "pipeline_spec": spec()})
    (default,) = server.call("GET", "/experiments").json["experiments"]
    assert default["display_name"] == "Default"
    assert server.call("DELETE", f"/experiments/{default['experiment_id']}").status == 400


def test_archiving_an_experiment_archives_its_runs(server: Server) -> None:
    experiment = server.call("POST", "/experiments", {"display_name": "a"}).json["experiment_id"]
    run = server.call("POST", "/runs", {"display_name": "r", "pipeline_spec": spec(), "experiment_id": experiment}).json
    path = f"/runs/{run['run_id']}"
    assert server.call("POST", f"/experiments/{experiment}:archive").json == {}
    assert server.call("GET", path).json["storage_state"] == "ARCHIVED"
    refused = server.call("POST", f"{path}:unarchive")
    assert (refused.status, refused.json["code"]) == (400, 9)
    body = {"display_name": "r", "pipeline_spec": spec(), "experiment_id": experiment}
    assert server.call("POST", "/runs", body).status == 400
    server.call("POST", f"/experiments/{experiment}:unarchive")
    assert server.call("GET", path).json["storage_state"] == "ARCHIVED"
    assert server.call("POST", f"{path}:unarchive").status == 200


def test_lists_are_paged_without_gaps(server: Server) -> None:
    names = [f"e{number}" for number in range(7)]
    for name in names:
        server.call("POST", "/experiments", {"display_name": name})
    seen, token = [], ""
    while True:
        page = server.call("GET", "/experiments", page_size=3, sort_by="display_name desc", page_token=token).json
        assert page["total_size"] == 7
        seen += [one["display_name"] for one in page["experiments"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert seen == sorted(names, reverse=True)


# ---- pipelines


@pytest.mark.parametrize("kind", ["yaml", "json", "zip", "tar.gz"])
def test_packages_of_every_kind_are_taken(server: Server, kind: str) -> None:
    text = json.dumps(spec()).encode() if kind == "json" else yaml.safe_dump(spec()).encode()
    content, buffer = text, io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("pipeline.yaml", text)
        content = buffer.getvalue()
    if kind == "tar.gz":
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            member = tarfile.TarInfo("pipeline.yaml")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
        content = buffer.getvalue()
    made = upload(server, "/pipelines/upload", f"p.{kind}", content, name="one", tags='{"team": "x"}')
    assert made.status == 200, made.body
    (version,) = server.call("GET", f"/pipelines/{made.json['pipeline_id']}/versions").json["pipeline_versions"]
    assert version["pipeline_spec"] == spec()
    assert (version["name"], version["tags"]) == ("one", {"team": "x"})


def test_upload_errors_have_their_own_shape(server: Server) -> None:
    for content in (b"{", b"just text", b"a: 1", b"\x1f\x8bbroken"):
        answer = upload(server, "/pipelines/upload", "p.yaml", content, name="one")
        assert answer.status == 400
        assert set(answer.json) == {"error_message", "error_details"}
    assert upload(server, "/pipelines/upload_version", "p.yaml", b"", name="v").status == 400
    assert server.call("POST", "/pipelines/upload").status == 400
    assert "pipelines" not in server.call("GET", "/pipelines").json


def test_an_upload_that_is_too_long_is_refused(server: Server) -> None:
    answer = upload(server, "/pipelines/upload", "p.yaml", b"x" * (33 * 1024 * 1024), name="one")
    assert answer.status == 413
    assert "more than" in answer.json["error_message"]


def test_versions_follow_their_pipeline(server: Server) -> None:
    text = yaml.safe_dump(spec()).encode()
    pipeline = upload(server, "/pipelines/upload", "p.yaml", text, name="one").json
    id_ = pipeline["pipeline_id"]
    assert upload(server, "/pipelines/upload", "p.yaml", text, name="one").status == 409
    second = upload(server, "/pipelines/upload_version", "p.yaml", text, name="v2", pipelineid=id_).json
    assert upload(server, "/pipelines/upload_version", "p.yaml", text, name="v2", pipelineid=id_).status == 409
    path = f"/pipelines/{id_}/versions/{second['pipeline_version_id']}"
    patched = server.call("PATCH", path, {"display_name": "Second", "tags": {"a": "b"}}).json
    assert (patched["name"], patched["display_name"], patched["tags"]) == ("v2", "Second", {"a": "b"})
    assert "tags" not in server.call("PATCH", path, {"tags": {}}).json
    assert server.call("GET", f"/pipelines/{id_}/versions", sort_by="created_at desc").json["total_size"] == 2
    text = where("IS_SUBSTRING", "pipeline_spec", string_value="schemaversion")
    listed = server.call("GET", f"/pipelines/{id_}/versions", filter=text, sort_by="pipeline_spec").json
    assert listed["total_size"] == 2
    refused = server.call("DELETE", f"/pipelines/{id_}")
    assert (refused.status, refused.json["code"]) == (400, 9)
    assert server.call("DELETE", path).status == 200
    assert server.call("DELETE", f"/pipelines/{id_}", cascade="true").status == 200
    assert server.call("GET", f"/pipelines/{id_}").status == 404


def test_a_pipeline_may_be_made_without_a_version(server: Server) -> None:
    made = server.call("POST", "/pipelines", {"display_name": "empty"}).json
    assert made["name"] == "empty"
    assert server.call("GET", "/pipelines/names/empty").json == made
    body = {"name": "v1", "pipeline_spec": spec()}
    assert server.call("POST", f"/pipelines/{made['pipeline_id']}/versions", body).status == 200


@pytest.mark.parametrize("tags", [{"a.b": "c"}, {"a": "x" * 64}, {str(n): "" for n in range(21)}])
def test_tags_have_limits(server: Server, tags: dict[str, str]) -> None:
    assert server.call("POST", "/pipelines", {"name": "p", "tags": tags}).status == 400


def test_pipelines_are_found_by_tag(server: Server) -> None:
    server.call("POST", "/pipelines", {"name": "a", "tags": {"team": "x"}})
    server.call("POST", "/pipelines", {"name": "b", "tags": {"team": "y"}})
    listed = server.call("GET", "/pipelines", filter=where("EQUALS", "tags.team", string_value="y")).json
    assert [pipeline["name"] for pipeline in listed["pipelines"]] == ["b"]


def test_a_package_url_must_be_http(server: Server) -> None:
    body = {"pipeline": {"name": "p"}, "pipeline_version": {"package_url": {"pipeline_url": "file:///etc/passwd"}}}
    answer = server.call("POST", "/pipelines/create", body)
    assert answer.status == 400
    assert "pipeline_version.package_url.pipeline_url" in answer.detail


# ---- runs


def submit(server: Server, **run: Any) -> Answer:
    return server.call("POST", "/runs", {"display_name": "r", "pipeline_spec": spec(), **run})


def test_a_run_waits_to_be_driven(server: Server) -> None:
    run = submit(server, runtime_config={"parameters": {}}).json
    assert run["state"] == "PENDING"
    assert run["pipeline_spec"] == spec()
    assert [entry["state"] for entry in run["state_history"]] == ["PENDING"]
    assert run["finished_at"] == "1970-01-01T00:00:00Z"
    assert server.call("GET", f"/runs/{run['run_id']}").json == run


def test_a_run_of_a_pipeline_takes_the_newest_version_and_shows_the_reference(server: Server) -> None:
    text = yaml.safe_dump(spec()).encode()
    id_ = upload(server, "/pipelines/upload", "p.yaml", text, name="one").json["pipeline_id"]
    second = upload(server, "/pipelines/upload_version", "p.yaml", text, name="v2", pipelineid=id_).json
    body = {"display_name": "r", "pipeline_version_reference": {"pipeline_id": id_}}
    run = server.call("POST", "/runs", body).json
    assert run["pipeline_version_reference"]["pipeline_version_id"] == second["pipeline_version_id"]
    assert "pipeline_spec" not in run
    assert "pipeline_spec" not in server.call("GET", f"/runs/{run['run_id']}").json
    # A reference to what is deleted would help nobody: the document is still there.
    server.call("DELETE", f"/pipelines/{id_}", cascade="true")
    kept = server.call("GET", f"/runs/{run['run_id']}").json
    assert (kept["pipeline_spec"], "pipeline_version_reference" in kept) == (spec(), False)


def test_a_summary_of_runs_has_no_documents(server: Server) -> None:
    run = submit(server).json
    (listed,) = server.call("GET", "/runs").json["runs"]
    assert listed == run
    (listed,) = server.call("GET", "/runs", view="SUMMARY").json["runs"]
    assert listed == {name: value for name, value in run.items() if name != "pipeline_spec"}


def test_a_document_with_what_json_cannot_say_is_shown_as_null(server: Server) -> None:
    document = spec(number={"parameterType": "NUMBER_DOUBLE", "defaultValue": float("nan")})
    made = submit(server, pipeline_spec=document, runtime_config={"parameters": {"number": 1.5}})
    if made.status == 200:
        assert b"NaN" not in server.call("GET", "/runs").body


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "runtime_config.parameters.count: Required value"),
        ({"count": "five"}, "runtime_config.parameters.count: Invalid value"),
        ({"count": 1, "colour": 2}, "runtime_config.parameters.colour"),
    ],
)
def test_wrong_parameters_are_refused_with_their_path(server: Server, parameters: dict[str, Any], says: str) -> None:
    document = spec(count={"parameterType": "NUMBER_INTEGER"})
    answer = submit(server, pipeline_spec=document, runtime_config={"parameters": parameters})
    assert answer.status == 400
    assert says in answer.detail
    assert "runs" not in server.call("GET", "/runs").json


def test_macros_in_parameters_are_replaced(server: Server) -> None:
    document = spec(id={"parameterType": "STRING"})
    run = submit(server, pipeline_spec=document, runtime_config={"parameters": {"id": "run-[[RunUUID]]"}}).json
    assert run["runtime_config"]["parameters"] == {"id": f"run-{run['run_id']}"}


@pytest.mark.parametrize(
    "run",
    [
        {"display_name": ""},
        {"pipeline_spec": None},
        {"pipeline_spec": {"schemaVersion": "1.0"}},
        {"colour": 1},
        {"pipeline_version_id": "x"},
    ],
)
def test_a_wrong_run_is_refused(server: Server, run: dict[str, Any]) -> None:
    answer = submit(server, **run)
    assert answer.status == 400, answer.body
    assert answer.json["message"]


def test_a_run_is_terminated_at_once_and_again_without_harm(server: Server) -> None:
    path = f"/runs/{submit(server).json['run_id']}"
    for _ in range(2):
        assert server.call("POST", f"{path}:terminate").status == 200
        assert server.call("GET", path).json["state"] == "CANCELING"


def test_only_a_failed_run_is_retried(server: Server) -> None:
    answer = server.call("POST", f"/runs/{submit(server).json['run_id']}:retry")
    assert (answer.status, answer.json["code"]) == (400, 9)


def test_runs_are_filtered_by_state_and_time(server: Server) -> None:
    first = submit(server).json
    second = submit(server, display_name="other").json
    server.call("POST", f"/runs/{first['run_id']}:terminate")
    found = server.call("GET", "/runs", filter=where(1, "state", stringValue="PENDING")).json["runs"]
    assert [run["run_id"] for run in found] == [second["run_id"]]
    text = where(6, "created_at", timestampValue=second["created_at"])
    assert [run["run_id"] for run in server.call("GET", "/runs", filter=text).json["runs"]] == [first["run_id"]]
    text = where(1, "created_at", timestampValue=second["created_at"])
    assert [run["run_id"] for run in server.call("GET", "/runs", filter=text).json["runs"]] == [second["run_id"]]
    text = where("IS_SUBSTRING", "name", string_value="the")
    assert server.call("GET", "/runs", filter=text).json["total_size"] == 1
    text = where("IS_SUBSTRING", "state_history", string_value="cancel")
    assert [run["run_id"] for run in server.call("GET", "/runs", filter=text).json["runs"]] == [first["run_id"]]
    page = server.call("GET", "/runs", sort_by="state_history desc", page_size=1).json
    rest = server.call("GET", "/runs", sort_by="state_history desc", page_token=page["next_page_token"]).json
    assert {run["run_id"] for run in page["runs"] + rest["runs"]} == {first["run_id"], second["run_id"]}
    text = where("NOT_EQUALS", "runtime_details", string_value="")
    assert server.call("GET", "/runs", filter=text, sort_by="runtime_details").json == {}
    assert server.call("GET", "/runs", experiment_id="none").json == {}


def test_a_deleted_run_is_gone(server: Server) -> None:
    path = f"/runs/{submit(server).json['run_id']}"
    assert server.call("DELETE", path).json == {}
    assert server.call("GET", path).status == 404


# ---- every operation of KFP's API description, from our own list of its facts

OPERATIONS = """
GET /auth
GET /experiments
POST /experiments
GET /experiments/{experiment_id}
DELETE /experiments/{experiment_id}
POST /experiments/{experiment_id}:archive
POST /experiments/{experiment_id}:unarchive
GET /filters
GET /healthz
GET /pipelines
POST /pipelines
POST /pipelines/create
POST /pipelines/upload
POST /pipelines/upload_version
GET /pipelines/names/{name}
GET /pipelines/{pipeline_id}
PATCH /pipelines/{pipeline.pipeline_id}
DELETE /pipelines/{pipeline_id}
GET /pipelines/{pipeline_id}/versions
POST /pipelines/{pipeline_id}/versions
GET /pipelines/{pipeline_id}/versions/{pipeline_version_id}
PATCH /pipelines/{pipeline_version.pipeline_id}/versions/{pipeline_version.pipeline_version_id}
DELETE /pipelines/{pipeline_id}/versions/{pipeline_version_id}
GET /recurringruns
POST /recurringruns
GET /recurringruns/{recurring_run_id}
DELETE /recurringruns/{recurring_run_id}
POST /recurringruns/{recurring_run_id}:disable
POST /recurringruns/{recurring_run_id}:enable
GET /runs
POST /runs
GET /runs/{run_id}
DELETE /runs/{run_id}
POST /runs/{run_id}:archive
POST /runs/{run_id}:retry
POST /runs/{run_id}:terminate
POST /runs/{run_id}:unarchive
POST /scheduledworkflows
POST /visualizations/{namespace}
POST /workflows
"""


def test_every_operation_is_routed(server: Server) -> None:
    for operation in OPERATIONS.split("\n")[1:-1]:
        method, path = operation.split()
        path = re.sub(r"\{[^}]*\}", "x", path)
        answer = server.call(method, path, {} if method in ("POST", "PATCH") else None)
        assert answer.status in (200, 400, 404), operation
        assert "no such endpoint" not in answer.body.decode(), operation


def test_our_list_of_operations_is_that_of_the_description(shared: Path) -> None:
    document = json.loads((shared / "specs/kfp/swagger/kfp_api_single_file.swagger.json").read_text())
    there = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert {text.replace("/apis/v2beta1", "") for text in there} == set(OPERATIONS.split("\n")[1:-1])


def check_schema(document: Any, schema: Any, value: Any, path: str) -> None:
    """Check that a value has the type that the description says, and no field that it does not have."""
    if "$ref" in schema:
        schema = document["definitions"][schema["$ref"].rpartition("/")[2]]
    kind = schema.get("type")
    if kind == "array":
        assert isinstance(value, list), path
        for number, item in enumerate(value):
            check_schema(document, schema["items"], item, f"{path}[{number}]")
    elif kind == "object":
        assert isinstance(value, dict), path
        properties = schema.get("properties") or {}
        for name, item in value.items():
            if "additionalProperties" in schema:
                check_schema(document, schema["additionalProperties"], item, f"{path}.{name}")
            elif properties:  # a free struct has none in the description
                assert name in properties, f"{path}.{name} is no field"
                check_schema(document, properties[name], item, f"{path}.{name}")
    elif kind == "integer":
        assert isinstance(value, int) and not isinstance(value, bool), path
    elif kind in ("string", "boolean"):
        assert isinstance(value, {"string": str, "boolean": bool}[kind]), (path, value)
        assert value in schema.get("enum", [value]), (path, value)
        if schema.get("format") == "int64":
            int(value)
        if schema.get("format") == "date-time":
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value), (path, value)


class Described:
    """Calls operations by the path of the description, and checks their answers by it."""

    def __init__(self, server: Server, document: Any) -> None:
        self.server = server
        self.document = document
        self.called: set[str] = set()

    def __call__(self, operation: str, *names: str, body: Any = None, **query: Any) -> Any:
        method, template = operation.split()
        parts = iter(names)
        path = re.sub(r"\{[^}]*\}", lambda _: next(parts), template)
        return self.check(operation, self.server.call(method, path, body, **query))

    def check(self, operation: str, answer: Answer) -> Any:
        method, template = operation.split()
        described = self.document["paths"][f"{BASE}{template}"][method.lower()]
        assert answer.status == 200, (operation, answer.body)
        check_schema(self.document, described["responses"]["200"]["schema"], answer.json, operation)
        self.called.add(operation)
        return answer.json


def test_answers_are_what_the_description_says(server: Server, shared: Path) -> None:
    document = json.loads((shared / "specs/kfp/swagger/kfp_api_single_file.swagger.json").read_text())
    # Servers say it, and the SDK reads it.
    document["definitions"]["v2beta1GetHealthzResponse"]["properties"]["tag_name"] = {"type": "string"}
    call = Described(server, document)
    for operation in ("GET /auth", "GET /filters", "GET /healthz"):
        call(operation)

    experiment = call("POST /experiments", body={"display_name": "e", "description": "d"})["experiment_id"]
    call("GET /experiments/{experiment_id}", experiment)
    assert call("GET /experiments", page_size=1)["total_size"] == 1

    package = yaml.safe_dump(spec()).encode()
    uploaded = upload(server, "/pipelines/upload", "p.yaml", package, name="p", tags='{"team": "a"}', description="d")
    pipeline = call.check("POST /pipelines/upload", uploaded)["pipeline_id"]
    uploaded = upload(server, "/pipelines/upload_version", "p.yaml", package, name="v2", pipelineid=pipeline)
    version = call.check("POST /pipelines/upload_version", uploaded)["pipeline_version_id"]
    call("POST /pipelines", body={"display_name": "bare"})
    inline = {"pipeline": {"display_name": "both"}, "pipeline_version": {"pipeline_spec": spec()}}
    call("POST /pipelines/create", body=inline)
    call("GET /pipelines", filter=where("EQUALS", "tags.team", string_value="a"))
    call("GET /pipelines/names/{name}", "p")
    call("GET /pipelines/{pipeline_id}", pipeline)
    call("PATCH /pipelines/{pipeline.pipeline_id}", pipeline, body={"display_name": "other"})
    versions = "/pipelines/{pipeline_id}/versions"
    third = call(f"POST {versions}", pipeline, body={"display_name": "v3", "pipeline_spec": spec()})
    assert call(f"GET {versions}", pipeline)["total_size"] == 3
    one = "/pipelines/{pipeline_version.pipeline_id}/versions/{pipeline_version.pipeline_version_id}"
    call(f"PATCH {one}", pipeline, version, body={"tags": {"stage": "dev"}})
    call(f"GET {versions}/{{pipeline_version_id}}", pipeline, version)

    config = {"parameters": {}, "pipeline_root": "/tmp/root"}
    run_body = {"display_name": "r", "experiment_id": experiment, "pipeline_spec": spec(), "runtime_config": config}
    run = call("POST /runs", body=run_body | {"service_account": "x", "description": "d"})["run_id"]
    reference = {"pipeline_id": pipeline, "pipeline_version_id": version}
    other = call("POST /runs", body={"display_name": "r2", "pipeline_version_reference": reference})["run_id"]
    put_task(server, run, "root", 1)
    put_task(server, run, "t", 2, "root")
    server.call("POST", "/artifacts", {"artifact": {"name": "m", "uri": "s3://b/m"}, "task_id": "t"})
    error = {"code": 13, "message": "no"}

    async def fail() -> None:
        await server.database.write(lambda c: tables.set_run_state(c, run, "FAILED", error, 5_000_000))

    anyio.run(fail)
    details = call("GET /runs/{run_id}", run)["run_details"]["task_details"]
    assert details[1]["outputs"]["m"]["artifact_ids"]
    assert call("GET /runs", sort_by="created_at desc")["total_size"] == 2
    for verb in ("retry", "terminate", "archive", "unarchive"):
        call(f"POST /runs/{{run_id}}:{verb}", run)
    call("DELETE /runs/{run_id}", other)

    recurring_body = {"display_name": "j", "experiment_id": experiment, "max_concurrency": "1", "mode": "DISABLE"}
    recurring_body |= {"pipeline_version_reference": reference, "trigger": EVERY_MINUTE}
    recurring = call("POST /recurringruns", body=recurring_body)["recurring_run_id"]
    one = "/recurringruns/{recurring_run_id}"
    call(f"GET {one}", recurring)
    assert call("GET /recurringruns")["total_size"] == 1
    for verb in ("enable", "disable"):
        call(f"POST {one}:{verb}", recurring)
    reported = report(server, "scheduledworkflows", {"uid": recurring}, trigger={"cronSchedule": {"cron": "@daily"}})
    call.check("POST /scheduledworkflows", reported)
    call(f"DELETE {one}", recurring)

    call(f"DELETE {versions}/{{pipeline_version_id}}", pipeline, third["pipeline_version_id"])
    call("DELETE /pipelines/{pipeline_id}", pipeline, cascade="true")
    for verb in ("archive", "unarchive"):
        call(f"POST /experiments/{{experiment_id}}:{verb}", experiment)
    call("DELETE /experiments/{experiment_id}", experiment)
    # Carried out by nobody here, which they say: runs are not Workflows, and there is no visualization service.
    refused = {"POST /visualizations/{namespace}", "POST /workflows"}
    assert set(OPERATIONS.split("\n")[1:-1]) - call.called == refused


# ---- recurring runs


def schedule(server: Server, trigger: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"display_name": "nightly", "pipeline_spec": spec(), "max_concurrency": "1", "trigger": trigger, **more}
    answer = server.call("POST", "/recurringruns", body)
    assert answer.status == 200, answer.json
    made: dict[str, Any] = answer.json
    return made


def tick(server: Server, seconds: int = 0) -> list[dict[str, Any]]:
    """Let time pass, start what is due, and return all runs in the order of their creation."""
    server.wait(seconds)
    anyio.run(server.scheduler.start_due)
    return list(server.call("GET", "/runs").json.get("runs", []))


def end_runs(server: Server) -> None:
    async def write() -> None:
        await server.database.write(lambda c: c.execute(tables.runs.update().values(state="SUCCEEDED")))

    anyio.run(write)


EVERY_MINUTE = {"periodic_schedule": {"interval_second": "60"}}


def test_a_recurring_run_is_made_read_and_listed(server: Server) -> None:
    made = schedule(server, {"cron_schedule": {"cron": "0 0 3 * * *"}}, mode="ENABLE", no_catchup=True)
    assert (made["status"], made["mode"], made["max_concurrency"]) == ("ENABLED", "ENABLE", "1")
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert made["pipeline_spec"] == spec()
    assert server.call("GET", f"/recurringruns/{made['recurring_run_id']}").json == made
    listed = server.call("GET", "/recurringruns", filter=where("EQUALS", "display_name", string_value="nightly"))
    assert listed.json == {"recurringRuns": [made], "total_size": 1}
    by_experiment = server.call("GET", "/recurringruns", experiment_id=made["experiment_id"])
    assert by_experiment.json["total_size"] == 1
    assert server.call("DELETE", f"/recurringruns/{made['recurring_run_id']}", propagation_policy="ORPHAN").json == {}
    assert server.call("GET", "/recurringruns").json == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_concurrency": "11"}, "max_concurrency: 11"),
        ({"trigger": {}}, "trigger: required"),
        ({"trigger": {"cron_schedule": {"cron": "* * * * *"}}}, "cron_schedule.cron: '* * * * *' has 5 fields"),
        ({"trigger": {"periodic_schedule": {}}}, "interval_second: required"),
        ({"trigger": {"cron_schedule": {"cron": "@daily"}, **EVERY_MINUTE}}, "set only one"),
        ({"runtime_config": {"parameters": {"x": 1}}}, "parameters.x"),
        ({"display_name": ""}, "display_name: required"),
    ],
)
def test_a_wrong_recurring_run_is_refused(server: Server, change: dict[str, Any], message: str) -> None:
    body = {"display_name": "a", "pipeline_spec": spec(), "max_concurrency": 1, "trigger": EVERY_MINUTE}
    answer = server.call("POST", "/recurringruns", body | change)
    assert (answer.status, message in answer.detail) == (400, True), answer.detail


def test_runs_start_when_they_are_due_one_at_a_time(server: Server) -> None:
    made = schedule(
        server,
        EVERY_MINUTE,
        pipeline_spec=spec(at={"parameterType": "STRING"}),
        runtime_config={"parameters": {"at": "[[Index]] [[ScheduledTime.15:04:05]]"}},
    )
    assert tick(server) == []
    (first,) = tick(server, 60)
    assert first["recurring_run_id"] == made["recurring_run_id"]
    assert re.fullmatch(r"nightly-1-[0-9a-f]{6}", first["display_name"])
    scheduled = datetime.fromisoformat(made["created_at"]) + timedelta(minutes=1)
    assert datetime.fromisoformat(first["scheduled_at"]) == scheduled
    assert first["runtime_config"]["parameters"] == {"at": f"1 {scheduled:%H:%M:%S}"}
    assert len(tick(server, 180)) == 1  # one is under way
    for count in (2, 3, 4):
        end_runs(server)
        assert len(tick(server)) == count  # each missed tick in its turn
    end_runs(server)
    assert len(tick(server)) == 4
    assert [run["runtime_config"]["parameters"]["at"][0] for run in tick(server)] == ["1", "2", "3", "4"]


def test_a_disabled_schedule_starts_nothing(server: Server) -> None:
    made = schedule(server, EVERY_MINUTE, mode="DISABLE", no_catchup=True)
    assert made["status"] == "DISABLED"
    assert tick(server, 600) == []
    one = f"/recurringruns/{made['recurring_run_id']}"
    assert server.call("POST", f"{one}:enable").json == {}
    assert len(tick(server)) == 1
    end_runs(server)
    server.call("POST", f"/experiments/{made['experiment_id']}:archive")
    assert server.call("GET", one).json["status"] == "DISABLED"
    assert server.call("POST", f"{one}:enable").status == 400
    assert len(tick(server, 600)) == 1


def test_a_schedule_of_a_pipeline_takes_its_newest_version(server: Server) -> None:
    content = yaml.safe_dump(spec("first")).encode()
    pipeline = upload(server, "/pipelines/upload", "p.yaml", content, name="p").json["pipeline_id"]
    made = schedule(server, EVERY_MINUTE, pipeline_spec=None, pipeline_version_reference={"pipeline_id": pipeline})
    assert made["pipeline_version_reference"] == {"pipeline_id": pipeline}
    newer = yaml.safe_dump(spec("second")).encode()
    version = upload(server, "/pipelines/upload_version", "p.yaml", newer, name="v2", pipelineid=pipeline).json
    (run,) = tick(server, 60)
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    end_runs(server)
    server.call("DELETE", f"/pipelines/{pipeline}", cascade="true")
    assert len(tick(server, 60)) == 1
    error = server.call("GET", f"/recurringruns/{made['recurring_run_id']}").json["error"]
    assert "Run 2 was not started" in error["message"]


# ---- artifacts


def keep(server: Server, uri: str) -> None:
    row = {"id": 7, "name": "a", "type": "system.Dataset", "uri": uri, "metadata": {"rows": 3}, "digest": "sha256:0"}
    row |= {"size_bytes": 5, "created_at": 1, "run_id": "r", "task_id": "t"}

    async def write() -> None:
        await server.database.write(lambda c: c.execute(tables.artifacts.insert(), row))

    anyio.run(write)


def test_an_artifact_is_downloaded_as_an_attachment(server: Server) -> None:
    file = server.settings.artifacts / "p" / "a <b>.html"
    file.parent.mkdir(parents=True)
    file.write_text("<script>")
    keep(server, str(file))
    assert server.call("GET", "/artifacts/7").json["metadata"] == {"rows": 3}
    assert server.call("GET", "/artifacts", run_id="r").json["total_size"] == 1
    answer = server.call("GET", "/artifacts/7:download")
    assert answer.body == b"<script>"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20%3Cb%3E.html"
    assert server.call("GET", "/artifacts/7:download", peek=3).body == b"<sc"


def test_a_directory_is_downloaded_as_an_archive(server: Server) -> None:
    folder = server.settings.artifacts / "model"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 100_000)
    (folder / "link").symlink_to("/etc/passwd")
    keep(server, str(folder))
    answer = server.call("GET", "/artifacts/7:download")
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        assert {member.name: member.type for member in archive} == {
            "model": tarfile.DIRTYPE,
            "model/weights": tarfile.REGTYPE,
            "model/link": tarfile.SYMTYPE,
        }


@pytest.mark.parametrize("uri", ["/etc/passwd", "{root}/../../etc/passwd", "{root}/link", "{root}/../rows.db"])
def test_no_artifact_leads_out_of_the_artifact_folder(server: Server, uri: str) -> None:
    server.settings.artifacts.mkdir()
    (server.settings.artifacts / "link").symlink_to("/etc/passwd")
    keep(server, uri.format(root=server.settings.artifacts))
    answer = server.call("GET", "/artifacts/7:download")
    assert (answer.status, answer.json["code"]) == (403, 7)


def test_an_artifact_elsewhere_or_gone_is_said(server: Server) -> None:
    keep(server, "oci://registry/a")
    assert server.call("GET", "/artifacts/7:download").status == 400
    assert server.call("GET", "/artifacts/8:download").status == 404
    assert server.call("GET", "/artifacts/..%2Fx:download").status in (400, 404)


# ---- the cache


def test_cache_entries_are_listed_and_removed(server: Server) -> None:
    entry = {"pipeline_name": "p", "run_id": "r", "task_id": "t", "outputs": {}, "material": {"image": "alpine"}}
    rows = [{**entry, "key": str(n), "component": f"c{n % 2}", "created_at": n} for n in range(5)]

    async def write() -> None:
        await server.database.write(lambda c: c.execute(tables.cache_entries.insert(), rows))

    anyio.run(write)
    listed = server.call("GET", "/cache", component="c1").json
    assert (listed["total_size"], [one["key"] for one in listed["entries"]]) == (2, ["3", "1"])
    assert server.call("DELETE", "/cache").status == 400
    assert server.call("DELETE", "/cache", component="c1").json == {"deleted": 2}
    assert server.call("DELETE", "/cache", all="true").json == {"deleted": 3}
    assert server.call("GET", "/cache").json == {"entries": [], "total_size": 0}


def test_runs_are_compared(server: Server) -> None:
    made = []
    for given in ({"rate": 1}, {}):
        body = {"display_name": "r", "pipeline_spec": spec(rate={"parameterType": "NUMBER_INTEGER", "defaultValue": 2})}
        made.append(server.call("POST", "/runs", body | {"runtime_config": {"parameters": given}}).json)
    keep(server, "/data/metrics")

    async def write() -> None:
        link = {"artifact_id": 7, "run_id": made[1]["run_id"], "task_id": "t", "type": "OUTPUT", "key": "m"}
        await server.database.write(lambda c: c.execute(tables.artifacts.update().values(type="system.Metrics")))
        await server.database.write(lambda c: c.execute(tables.artifact_tasks.insert(), link))

    anyio.run(write)
    compared = server.call("GET", "/runs:compare", run_ids=",".join(run["run_id"] for run in made)).json
    assert compared["differing"] == ["rate"]
    assert [run["metrics"] for run in compared["runs"]] == [{}, {"a.rows": 3}]
    assert [run["parameters"] for run in compared["runs"]] == [{"rate": 1}, {"rate": 2}]
    assert server.call("GET", "/runs:compare", run_ids="nope").status == 404


def test_what_has_no_effect_is_said_in_a_header(server: Server) -> None:
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-echo": {"gpuBurst": 1}}}}}}
    body = {"display_name": "a", "pipeline_spec": {"pipeline_spec": spec(), "platform_spec": platform}}
    answer = server.call("POST", "/runs", body)
    assert answer.status == 200
    assert answer.headers["warning"].endswith('executors.exec-echo.gpuBurst: not known, ignored."')


# ---- what clients of a whole Kubeflow use


def put_task(server: Server, run_id: str, id_: str = "t", execution: int = 1, parent_id: str = "") -> None:
    row = {"id": id_, "execution": execution, "run_id": run_id, "path": f"root/{id_}", "name": id_, "kind": "container"}
    row["parent_id"] = parent_id
    row |= {"state": "SUCCEEDED", "started_at": 1_000_000, "ended_at": 3_500_000, "state_history": []}
    row |= {"pods": [{"name": "pod-1"}], "inputs": {}, "outputs": {}, "error": None}

    async def write() -> None:
        await server.database.write(lambda c: c.execute(tables.tasks.insert(), row))

    anyio.run(write)


def test_an_artifact_is_registered_as_an_output_and_read_in_all_ways(server: Server) -> None:
    run_id = submit(server).json["run_id"]
    put_task(server, run_id)
    folder = server.settings.artifacts / "p" / "model"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w" * 10)
    body: dict[str, Any] = {"artifact": {"name": "model", "type": "system.Model", "uri": str(folder)}}
    body["artifact"]["metadata"] = {"accuracy": 0.5}
    made = server.call("POST", "/artifacts", body | {"task_id": "t", "producer_key": "out"}).json
    assert (made["run_id"], made["task_id"], made["metadata"]) == (run_id, "t", {"accuracy": 0.5})
    (link,) = server.call("GET", "/artifact_tasks", task_id="t").json["artifact_tasks"]
    assert (link["artifact_id"], link["key"], link["type"]) == (made["artifact_id"], "out", "OUTPUT")
    refused = server.call("GET", f"/runs/{run_id}/nodes/pod-1/artifacts/out:read")
    assert (refused.status, "is a directory" in refused.detail) == (400, True)
    assert server.call("GET", f"/runs/{run_id}/nodes/t/artifacts/other:read").status == 404
    weights = {"artifact": {"name": "weights", "uri": str(folder / "weights")}, "task_id": "t"}
    second = server.call("POST", "/artifacts", weights).json
    assert int(second["artifact_id"]) == int(made["artifact_id"]) + 1
    assert server.call("GET", f"/runs/{run_id}/nodes/t/artifacts/weights:read").json == {"data": "d3d3d3d3d3d3dw=="}
    # As the pages of a whole Kubeflow ask for it; what lies in a folder, too.
    query = {"source": "volume", "bucket": "artifacts", "key": f"{folder}/weights"}
    for prefix in ("", "/pipeline"):
        assert server.root("GET", f"{prefix}/artifacts/get", **query, peek=3).body == b"www"
    # A folder's artifact leads no further than the folder of all artifacts.
    assert (
        server.root("GET", "/artifacts/get", source="volume", bucket="x", key=f"{folder}/../../../token").status == 403
    )
    assert server.root("GET", "/artifacts/get", source="volume", bucket="x", key="/etc/passwd").status == 404
    assert server.root("GET", "/artifacts/get", source="http", bucket="x", key="y").status == 400
    assert server.root("GET", "/pipeline/apis/v2beta1/healthz").json["multi_user"] is False
    assert server.root("GET", "/pipeline/healthz").json["multi_user"] is False
    assert server.root("GET", "/pipeline/").headers["location"] == "/"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "artifact.name: required"),
        ({"artifact": {"name": "a", "uri": "model"}}, "artifact.uri: 'model' is neither"),
        ({"artifact": {"name": "a", "uri": "s3://b/k"}, "task_id": "x"}, "task_id: no task 'x'"),
    ],
)
def test_a_wrong_artifact_is_refused(server: Server, body: dict[str, Any], message: str) -> None:
    assert message in server.call("POST", "/artifacts", body).detail


def test_runs_are_sorted_by_a_metric(server: Server) -> None:
    ids = [submit(server).json["run_id"] for _ in range(4)]

    async def write() -> None:
        def insert(connection: Any) -> None:
            for number, value in ((1, 0.9), (2, 0.5), (3, 0.7)):
                row = {"id": number, "name": "m", "type": "system.Metrics", "uri": "/m", "metadata": {"Acc": value}}
                connection.execute(tables.artifacts.insert(), row)
                link = {"artifact_id": number, "run_id": ids[number], "task_id": "", "type": "OUTPUT", "key": "m"}
                connection.execute(tables.artifact_tasks.insert(), link)

        await server.database.write(insert)

    anyio.run(write)
    seen: list[str] = []
    token = ""
    while True:
        page = server.call("GET", "/runs", sort_by="metric:Acc desc", page_size=2, page_token=token).json
        seen += [run["run_id"] for run in page["runs"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert seen == [ids[1], ids[3], ids[2], ids[0]]
    assert server.call("GET", "/experiments", sort_by="metric:Acc").status == 400


def test_metrics_count_runs_and_tasks(server: Server) -> None:
    put_task(server, submit(server).json["run_id"])
    text = server.root("GET", "/metrics").body.decode()
    assert 'shallop_pipelines_runs{state="PENDING"} 1\n' in text
    assert 'shallop_pipelines_runs{state="FAILED"} 0\n' in text
    assert 'shallop_pipelines_task_seconds{state="SUCCEEDED"} 2.5\n' in text


def test_tasks_are_listed_and_shown(server: Server) -> None:
    run_id = submit(server).json["run_id"]
    put_task(server, run_id)
    (task,) = server.call("GET", "/tasks", run_id=run_id).json["tasks"]
    assert (task["task_id"], task["state"], task["pod_name"]) == ("t", "SUCCEEDED", "pod-1")
    assert server.call("GET", "/tasks/t").json == task
    assert "tasks" not in server.call("GET", "/tasks", run_id=run_id, parent_id="other").json
    assert "run_id: required" in server.call("GET", "/tasks").detail
    assert server.call("GET", "/tasks/x").status == 404


def test_tasks_are_paged_in_order_with_what_is_below_each(server: Server) -> None:
    run_id, other = (submit(server).json["run_id"] for _ in range(2))
    places = {"root": "", "a": "root", "b": "root", "a1": "a", "a2": "a", "c": "root"}
    for execution, (id_, parent) in enumerate(places.items(), 1):
        put_task(server, run_id, id_, execution, parent)
    put_task(server, other, "else", 9, "root")
    for parent, wanted in (("", list(places)), ("root", ["a", "b", "c"]), ("a", ["a1", "a2"]), ("b", [])):
        seen: list[dict[str, Any]] = []
        token = ""
        while True:
            page = server.call("GET", "/tasks", run_id=run_id, parent_id=parent, page_size=2, page_token=token).json
            assert int(page.get("total_size", 0)) == len(wanted)
            seen += page.get("tasks", [])
            if not (token := page.get("next_page_token", "")):
                break
        assert [task["task_id"] for task in seen] == wanted
    assert server.call("GET", "/tasks/root").json["child_tasks"] == [{"task_id": id_} for id_ in ("a", "b", "c")]
    assert server.call("GET", "/tasks/a").json["child_tasks"] == [{"task_id": "a1"}, {"task_id": "a2"}]


# ---- what upstream's controllers report


def report(server: Server, kind: str, metadata: dict[str, Any], **spec_: Any) -> Answer:
    metadata = {"name": "one", "namespace": "kubeflow", "uid": "u", **metadata}
    # A JSON string that holds JSON text: so the generated clients send it.
    return server.call("POST", f"/{kind}", json.dumps({"metadata": metadata, "spec": spec_}))


def test_a_scheduled_workflow_changes_its_recurring_run(server: Server) -> None:
    made = schedule(server, EVERY_MINUTE)
    cron = {"cronSchedule": {"cron": "0 0 4 * * *", "endTime": "2030-01-01T00:00:00Z"}}
    metadata = {"uid": made["recurring_run_id"]}
    spec_: dict[str, Any] = {"enabled": False, "maxConcurrency": 3, "noCatchup": True, "trigger": cron}
    answer = report(server, "scheduledworkflows", metadata, **spec_)
    assert (answer.status, answer.json) == (200, {})
    seen = server.call("GET", f"/recurringruns/{made['recurring_run_id']}").json
    assert seen["trigger"] == {"cron_schedule": {"cron": "0 0 4 * * *", "end_time": "2030-01-01T00:00:00Z"}}
    assert (seen["status"], seen["mode"], seen["max_concurrency"]) == ("DISABLED", "DISABLE", "3")
    assert seen["no_catchup"] is True
    assert tick(server, 120) == []
    spec_ = {"enabled": True, "trigger": {"periodicSchedule": {"intervalSecond": 60}, "cronSchedule": None}}
    assert report(server, "scheduledworkflows", metadata, **spec_).status == 200
    assert len(tick(server, 60)) == 1
    server.call("POST", f"/experiments/{made['experiment_id']}:archive")
    answer = report(server, "scheduledworkflows", metadata, **spec_)
    assert (answer.status, answer.json["code"]) == (400, 9)


@pytest.mark.parametrize(
    ("metadata", "trigger", "status", "where_"),
    [
        ({"name": ""}, {}, 400, "scheduled_workflow.metadata.name"),
        ({"namespace": None}, {}, 400, "scheduled_workflow.metadata.namespace"),
        ({"uid": ""}, {}, 400, "scheduled_workflow.metadata.uid"),
        ({"uid": "unknown"}, {}, 404, "scheduled_workflow.metadata.uid"),
        ({}, None, 400, "trigger"),
        ({}, {"cronSchedule": {"cron": "never"}}, 400, "trigger.cron_schedule.cron"),
        ({}, {"cronSchedule": "x"}, 400, "scheduled_workflow.spec"),
        ({}, {"periodicSchedule": {"intervalSecond": 0}}, 400, "trigger.periodic_schedule.interval_second"),
    ],
)
def test_a_report_that_cannot_be_followed_says_why(
    server: Server, metadata: dict[str, Any], trigger: Any, status: int, where_: str
) -> None:
    made = schedule(server, EVERY_MINUTE)
    metadata = {"uid": made["recurring_run_id"], **metadata}
    answer = report(server, "scheduledworkflows", metadata, trigger=trigger)
    assert answer.status == status
    assert where_ in answer.detail
    assert server.call("GET", f"/recurringruns/{made['recurring_run_id']}").json == made


def test_a_workflow_is_not_reported_to_who_runs_it(server: Server) -> None:
    run_id = server.call("POST", "/runs", {"display_name": "x", "pipeline_spec": spec()}).json["run_id"]
    labels = {"labels": {"pipeline/runid": run_id}}
    answer = report(server, "workflows", labels)
    assert (answer.status, answer.json["code"]) == (400, 9)
    assert ":terminate" in answer.detail
    assert report(server, "workflows", {"labels": {"pipeline/runid": "x"}}).status == 404
    assert "'pipeline/runid' is required" in report(server, "workflows", {}).detail
    assert "workflow.metadata.uid" in report(server, "workflows", {"uid": ""}).detail
    for body in ("not JSON", "[]", 5, {"metadata": {}}):
        assert server.call("POST", "/workflows", body).status == 400


def test_visualizations_are_checked_and_no_service_makes_them(server: Server) -> None:
    asked = {"type": "TABLE", "source": "/data.csv", "arguments": '{"headers": []}'}
    answer = server.call("POST", "/visualizations/kubeflow", asked)
    assert (answer.status, answer.json["code"]) == (503, 14)
    assert "no visualization service" in answer.detail
    for wrong, named in (({"source": ""}, "source"), ({"arguments": "{"}, "arguments"), ({"type": "PIE"}, "type")):
        answer = server.call("POST", "/visualizations/kubeflow", asked | wrong)
        assert answer.status == 400
        assert named in answer.detail
