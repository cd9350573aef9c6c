"""Which endpoint and credentials a bucket has."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.errors import ObjectStoreError
from shallop.pipelines.providers import select_provider
from shallop.store.objects import is_object_uri, parse_object_uri

PROVIDERS: dict[str, Any] = {
    "s3": {
        "default": {"endpoint": "default"},
        "overrides": [
            {"bucketName": "b", "endpoint": "bucket"},
            {"bucketName": "b", "keyPrefix": "team/a", "endpoint": "prefix"},
        ],
    }
}


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [
        ("s3://other/x", "default"),
        ("s3://b/x", "bucket"),
        ("s3://b/team/ab", "bucket"),
        ("s3://b/team/a", "prefix"),
        ("s3://b/team/a/c?region=eu", "prefix"),
        ("minio://mlpipeline/v2", "http://minio-service.kubeflow:9000"),
    ],
)
def test_the_longest_override_that_fits_is_chosen(uri: str, endpoint: str) -> None:
    assert select_provider(PROVIDERS, parse_object_uri(uri))["endpoint"] == endpoint


def test_a_uri_is_taken_apart() -> None:
    place = parse_object_uri("s3://bucket/a/b/?endpoint=localhost:9000&region=eu")
    assert (place.bucket, place.key, place.options) == ("bucket", "a/b", {"endpoint": "localhost:9000", "region": "eu"})
    assert [is_object_uri(uri) for uri in ("gs://b", "az://c/x", "/data", "oci://r/x", "s3")] == [True, True] + [
        False
    ] * 3
    with pytest.raises(ObjectStoreError, match="BUCKET"):
        parse_object_uri("s3:///x")
