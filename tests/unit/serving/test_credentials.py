"""Credentials stay in their Secrets; Pods refer to them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from shallop.kube.objects import Object
from shallop.serving.credentials import (
    CredentialsError,
    env_of_config,
    env_of_pull_secrets,
    env_of_secrets,
    storage_of_config,
)


def secret(name: str, annotations: dict[str, str] | None = None, **data: str) -> Object:
    encoded = {key.replace("__", "-"): base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"metadata": {"name": name, "annotations": annotations or {}}, "data": encoded}


def test_the_secrets_of_an_account_become_variables_that_refer_to_them() -> None:
    notes = {"serving.kserve.io/s3-endpoint": "minio:9000", "serving.kserve.io/s3-usehttps": "0"}
    env = env_of_secrets([secret("s3", notes, AWS_ACCESS_KEY_ID="a", other="x"), secret("b", AWS_ACCESS_KEY_ID="b")])
    assert env == [
        {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "AWS_ACCESS_KEY_ID"}}},
        {"name": "S3_ENDPOINT", "value": "minio:9000"},
        {"name": "S3_USE_HTTPS", "value": "0"},
    ]


def test_keys_of_google_and_azure_are_taken_too() -> None:
    google = {"gcloud-application-credentials.json": "e30="}
    found = env_of_secrets(
        [{"metadata": {"name": "g"}, "data": google}, secret("a", AZ_CLIENT_ID="c", AZ_TENANT_ID="t")]
    )
    references = {item["name"]: item["valueFrom"]["secretKeyRef"] for item in found}
    assert references == {
        "GOOGLE_APPLICATION_CREDENTIALS_JSON": {"name": "g", "key": "gcloud-application-credentials.json"},
        "AZ_CLIENT_ID": {"name": "a", "key": "AZ_CLIENT_ID"},
        "AZ_TENANT_ID": {"name": "a", "key": "AZ_TENANT_ID"},
    }


def test_headers_of_a_host_are_for_that_host() -> None:
    (found,) = env_of_secrets([secret("h", https__host="models.example.com", headers="{}")])
    assert found["name"] == "models.example.com-headers"


def test_a_configuration_gives_the_uri_and_is_referred_to() -> None:
    config = secret("storage-config", minio=json.dumps({"type": "s3", "bucket": "models"}))
    uri, env = storage_of_config({"key": "minio", "path": "/iris"}, config, "storage-config")
    assert uri == "s3://models/iris"
    assert env[0]["valueFrom"]["secretKeyRef"] == {"name": "storage-config", "key": "minio"}
    uri, env = storage_of_config(
        {"path": "iris", "parameters": {"type": "s3", "bucket": "other"}}, config, "storage-config"
    )
    assert uri == "s3://other/iris"
    assert [item["name"] for item in env] == ["STORAGE_OVERRIDE_CONFIG"]


@pytest.mark.parametrize(
    ("storage", "found"),
    [
        ({"key": "odd"}, secret("storage-config")),
        ({"key": "odd"}, None),
        ({"key": "bad"}, secret("storage-config", bad="{")),
        ({"key": "hdfs"}, secret("storage-config", hdfs='{"type": "hdfs"}')),
    ],
)
def test_what_is_missing_is_named(storage: dict[str, Any], found: Object | None) -> None:
    with pytest.raises(CredentialsError, match=r"spec\.predictor\.model\.storage"):
        storage_of_config(storage, found, "storage-config")


def test_a_logger_and_a_cache_get_the_variables_of_a_configuration() -> None:
    config = secret("storage-config", bucket="{}")
    env = env_of_config("spec.x", {"key": "bucket", "parameters": {"region": "eu"}}, config, "storage-config")
    assert env[0]["valueFrom"] == {"secretKeyRef": {"name": "storage-config", "key": "bucket"}}
    assert json.loads(env[1]["value"]) == {"region": "eu"}
    with pytest.raises(CredentialsError, match=r"spec\.x\.key: Secret 'storage-config' has no key 'odd'"):
        env_of_config("spec.x", {"key": "odd"}, config, "storage-config")


def test_credentials_of_registries_are_referred_to_in_their_order() -> None:
    env = env_of_pull_secrets(["mine", "ours"])
    assert [item["name"] for item in env] == ["OCI_DOCKER_CONFIG_0", "OCI_DOCKER_CONFIG_1"]
    assert env[1]["valueFrom"]["secretKeyRef"] == {"name": "ours", "key": ".dockerconfigjson", "optional": True}
