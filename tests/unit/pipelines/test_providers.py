"""Which endpoint and credentials a bucket has."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import yaml

from shallop.embedded.apiserver import ApiServer
from shallop.errors import ObjectStoreError
from shallop.pipelines.providers import access_to, select_provider
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


def test_each_namespace_has_its_own_credentials() -> None:
    async def main() -> None:
        server = ApiServer(None, admin_token="unused")
        await server.start()
        client = server.client()
        for namespace in ("team-a", "team-b"):
            reference = {"secretName": "keys", "accessKeyKey": "access", "secretKeyKey": "secret"}
            default = {"endpoint": f"http://{namespace}:9000", "credentials": {"secretRef": reference}}
            await client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            data = {"providers": yaml.safe_dump({"s3": {"default": default}})}
            meta = {"name": "kfp-launcher", "namespace": namespace}
            await client.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
            keys = {"access": f"of-{namespace}", "secret": "s"}
            meta = {"name": "keys", "namespace": namespace}
            await client.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": keys})
        found = [await access_to(client, namespace, "s3://bucket/key") for namespace in ("team-a", "team-b")]
        assert [one.endpoint for one in found] == ["http://team-a:9000", "http://team-b:9000"]
        assert [one.credentials["access_key_id"] for one in found] == ["of-team-a", "of-team-b"]
        assert (await access_to(client, "team-c", "s3://bucket/key")).credentials == {}
        await server.stop()

    asyncio.run(main())
