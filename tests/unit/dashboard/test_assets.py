"""Static files of the dashboard: caching, policy, and no way out of the folder."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shallop.dashboard.assets import Assets

Call = Callable[..., Any]
CONTENT = "http://127.0.0.1:8082"


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>shallop</title>")
    (folder / "favicon.svg").write_text("<svg/>")
    script = folder / "assets" / "index-abc123.js"
    script.write_text("console.log(1)")
    script.with_name("index-abc123.js.gz").write_bytes(gzip.compress(script.read_bytes()))
    (tmp_path / "secret").write_text("secret")
    (folder / ".sources-digest").write_text("secret")
    return folder


def test_the_index_is_never_kept(built: Path, call: Call) -> None:
    answer = call(Assets(built, CONTENT).routes(), "/")
    assert answer.status == 200
    assert answer.headers["cache-control"] == "no-store"
    assert b"shallop" in answer.body


def test_hashed_files_are_kept_for_ever(built: Path, call: Call) -> None:
    answer = call(Assets(built, CONTENT).routes(), "/assets/index-abc123.js")
    assert answer.status == 200
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript")


def test_a_packed_file_goes_to_those_who_accept_it(built: Path, call: Call) -> None:
    routes = Assets(built, CONTENT).routes()
    packed = call(routes, "/assets/index-abc123.js", accept_encoding="gzip, br")
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    assert packed.headers["content-type"].startswith("text/javascript")
    assert gzip.decompress(packed.body) == b"console.log(1)"
    assert "content-encoding" not in call(routes, "/assets/index-abc123.js").headers


@pytest.mark.parametrize("path", ["/", "/assets/index-abc123.js", "/assets/none.js", "/favicon.svg"])
def test_every_answer_has_the_policy(built: Path, call: Call, path: str) -> None:
    headers = call(Assets(built, CONTENT).routes(), path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-src"] == CONTENT
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "../../secret",
        "../index.html",
        "..",
        "",
        "/etc/passwd",
        "..\\secret",
        ".hidden",
        "../.sources-digest",
        "index-abc123.js/../../index.html",
        "index-abc123.js\0",
        "index-abc123.js.gz",
        "a/b.js",
    ],
)
def test_no_name_leads_out_of_the_folder(built: Path, call: Call, name: str) -> None:
    answer = call(Assets(built, CONTENT).routes(), f"/assets/{name}")
    assert answer.status == 404
    assert b"secret" not in answer.body


def test_a_missing_file_is_not_remembered_as_missing(built: Path, call: Call) -> None:
    answer = call(Assets(built, CONTENT).routes(), "/assets/index-old.js")
    assert (answer.status, answer.headers["cache-control"]) == (404, "no-store")


def test_without_a_build_a_page_says_how_to_build(tmp_path: Path, call: Call) -> None:
    answer = call(Assets(tmp_path / "none", CONTENT).routes(), "/")
    assert answer.status == 503
    assert b"make setup" in answer.body
    assert b"build_web.py" in answer.body
    assert "content-security-policy" in answer.headers
