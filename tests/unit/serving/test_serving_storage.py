"""Storage URIs, and what a registry has behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from shallop.serving.registrymodels import Fetch, ModelNotFoundError, resolve_model
from shallop.serving.storage import Claim, RegistryReference, check_uri, claim_of, local_path, parse_registry_uri


@pytest.mark.parametrize(
    "uri",
    [
        "/a/b",
        "file:///a",
        "pvc://c",
        "pvc://c/a/b",
        "s3://b/p",
        "model-registry://m",
        "model-registry://m/1",
        "hf://a/b",
    ],
)
def test_a_known_uri_is_fine(uri: str) -> None:
    assert check_uri(uri) == ""


@pytest.mark.parametrize(
    "uri",
    ["a/b", "", "ftp://x", "pvc://", "pvc://c/../d", "file://a/b", "file:///../x", "model-registry://a/b/c/d", "s3://"],
)
def test_a_bad_uri_is_explained(uri: str) -> None:
    assert check_uri(uri)


def test_local_paths(tmp_path: Path) -> None:
    volumes = tmp_path / "volumes"
    assert local_path("/models/a", "team", volumes) == Path("/models/a")
    assert local_path("file:///models/a%20b", "team", volumes) == Path("/models/a b")
    assert local_path("pvc://claim/x/y", "team", volumes) == (volumes / "team/claim/x/y").resolve()
    assert local_path("s3://bucket/x", "team", volumes) is None
    assert claim_of("pvc://claim/x/y/") == Claim("claim", "x/y")


@pytest.mark.parametrize("uri", ["pvc://claim/../../other/claim", "pvc://../x", "pvc://claim/link"])
def test_a_claim_is_never_left(tmp_path: Path, uri: str) -> None:
    claim = tmp_path / "team" / "claim"
    claim.mkdir(parents=True)
    (claim / "link").symlink_to("/etc")
    assert local_path(uri, "team", tmp_path) is None


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("model-registry://flights", ("", "flights", "")),
        ("model-registry://flights/3", ("", "flights", "3")),
        ("model-registry://a%2Fb/3", ("", "a/b", "3")),
        ("model-registry://model-registry-service.kubeflow:8080/flights", ("", "flights", "")),
        ("model-registry://model-registry-service:8080/flights/3", ("", "flights", "3")),
        ("model-registry://other:8080/flights/3?namespace=x", ("other:8080", "flights", "3")),
    ],
)
def test_registry_uris(uri: str, expected: tuple[str, str, str]) -> None:
    assert parse_registry_uri(uri) == RegistryReference(*expected)


def registry(answers: Mapping[str, Any]) -> Fetch:
    async def fetch(path: str, params: Mapping[str, str]) -> dict[str, Any] | None:
        found: dict[str, Any] | None = answers.get(f"{path} {params.get('name', '')}".strip())
        return found

    return fetch


ANSWERS: dict[str, Any] = {
    "registered_model flights": {"id": "1"},
    "model_version 3": {"id": "7", "name": "3"},
    "registered_models/1/versions": {"items": [{"id": "8", "name": "4"}]},
    "model_versions/7/artifacts": {"items": [{"uri": "/models/3"}]},
    "model_versions/8/artifacts": {"items": [{"uri": "/models/4"}]},
}


def test_a_version_and_the_newest_are_resolved() -> None:
    assert anyio.run(resolve_model, "model-registry://flights/3", registry(ANSWERS)) == "/models/3"
    assert anyio.run(resolve_model, "model-registry://flights", registry(ANSWERS)) == "/models/4"


@pytest.mark.parametrize(
    ("uri", "missing", "message"),
    [
        ("model-registry://nope/3", "", "the registry has no model 'nope'"),
        ("model-registry://flights/9", "", "model 'flights' has no version '9'"),
        ("model-registry://flights", "registered_models/1/versions", "model 'flights' has no version in the registry"),
        ("model-registry://flights/3", "model_versions/7/artifacts", "version '3' has no artifact"),
        ("model-registry://other:8080/flights/3", "", "other:8080 is not this platform's registry"),
    ],
)
def test_what_the_registry_lacks_is_named(uri: str, missing: str, message: str) -> None:
    answers = {key: value for key, value in ANSWERS.items() if key != missing}
    with pytest.raises(ModelNotFoundError) as error:
        anyio.run(resolve_model, uri, registry(answers))
    assert message in str(error.value)
