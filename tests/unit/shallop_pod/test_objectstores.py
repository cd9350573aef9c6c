"""Object stores: signatures as AWS documents them, listings of each store, played by functions."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from typing import Any

import pytest

from shallop_pod.objectstores import ObjectStoreError, is_object_store, list_objects, put_request, sign
from shallop_pod.storage import StorageError, with_config

KEYS = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
THEN = datetime(2013, 5, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "more", "signature"),
    [
        (
            "test.txt",
            {"range": "bytes=0-9"},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        ("?max-keys=2&prefix=J", {}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
        ("?lifecycle", {}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
    ],
)
def test_signatures_are_those_of_the_documentation(query: str, more: dict[str, str], signature: str) -> None:
    host = "examplebucket.s3.amazonaws.com"
    headers = sign(f"https://{host}/{query}", {"host": host, **more}, KEYS, "us-east-1", THEN)
    assert headers["authorization"].endswith(f"Signature={signature}")


class Server:
    """Answers by URL without query; remembers what it was asked."""

    def __init__(self, **pages: Any) -> None:
        self.pages = pages
        self.asked: list[urllib.request.Request] = []

    def __call__(self, request: urllib.request.Request) -> bytes:
        self.asked.append(request)
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(request.full_url).query))
        token = query.get("continuation-token") or query.get("pageToken") or query.get("marker") or "first"
        page = self.pages[token]
        return page.encode() if isinstance(page, str) else json.dumps(page).encode()


def contents(*keys: str, more: str = "") -> str:
    items = "".join(f"<Contents><Key>{key}</Key><Size>{0 if 'empty' in key else 3}</Size></Contents>" for key in keys)
    following = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{items}{following}</ListBucketResult>'


def test_an_s3_folder_is_listed_page_by_page_and_signed() -> None:
    server = Server(
        first=contents("m/iris/a.pkl", "m/iris/empty", more="two"), two=contents("m/iris/x/b c", "m/iris2/z")
    )
    environ = {"AWS_ENDPOINT_URL": "http://store:9000", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
    found = list(list_objects("s3://bucket/m/iris/", environ, server))
    assert [item.relative for item in found] == ["a.pkl", "x/b c"]
    request = found[1].request()
    assert request.full_url == "http://store:9000/bucket/m/iris/x/b%20c"
    assert request.headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=me/")
    anonymous = list(list_objects("s3://bucket/m/iris", environ | {"awsAnonymousCredential": "true"}, server))
    assert "Authorization" not in anonymous[0].request().headers
    virtual = list(list_objects("s3://bucket/m/iris", environ | {"S3_USER_VIRTUAL_BUCKET": "true"}, server))
    assert virtual[0].request().full_url == "http://bucket.store:9000/m/iris/a.pkl"


def test_a_key_of_s3_is_one_file() -> None:
    found = list(list_objects("s3://bucket/m/iris.pkl", {}, Server(first=contents("m/iris.pkl", "m/iris.pkl.bak"))))
    assert [item.relative for item in found] == ["iris.pkl"]
    assert found[0].request().full_url == "https://s3.us-east-1.amazonaws.com/bucket/m/iris.pkl"


def test_a_google_bucket_is_listed() -> None:
    server = Server(first={"items": [{"name": "m/a"}, {"name": "m/"}], "nextPageToken": "two"}, two={})
    environ = {"STORAGE_EMULATOR_HOST": "http://gcs:4443", "GOOGLE_OAUTH_ACCESS_TOKEN": "t"}
    (found,) = list_objects("gs://bucket/m", environ, server)
    assert (found.relative, found.request().full_url) == ("a", "http://gcs:4443/storage/v1/b/bucket/o/m%2Fa?alt=media")
    assert found.request().headers["Authorization"] == "Bearer t"


def test_an_azure_container_is_listed() -> None:
    page = "\ufeff<EnumerationResults><Blobs><Blob><Name>m/a</Name></Blob></Blobs><NextMarker/></EnumerationResults>"
    uri = "https://acct.blob.core.windows.net/models/m"
    (found,) = list_objects(uri, {"AZURE_STORAGE_SAS_TOKEN": "?sig=x"}, Server(first=page))
    assert found.relative == "a"
    assert found.request().full_url == "https://acct.blob.core.windows.net/models/m/a?sig=x"


def test_a_repository_of_hugging_face_is_brought_in_one_commit() -> None:
    server = Server(first={"sha": "abc", "siblings": [{"rfilename": "config.json"}, {"rfilename": "onnx/m.onnx"}]})
    found = list(list_objects("hf://team/bert:v1", {"HF_ENDPOINT": "http://hub", "HF_TOKEN": "t"}, server))
    assert server.asked[0].full_url == "http://hub/api/models/team/bert/revision/v1"
    assert found[1].request().full_url == "http://hub/team/bert/resolve/abc/onnx/m.onnx"


@pytest.mark.parametrize("uri", ["s3://", "hf://model", "https://acct.blob.core.windows.net/"])
def test_a_uri_that_says_too_little_is_told(uri: str) -> None:
    with pytest.raises(ObjectStoreError):
        list(list_objects(uri, {}, Server(first="")))


def test_other_uris_are_none_of_these() -> None:
    assert not any(map(is_object_store, ("https://example.com/a", "pvc://claim/x", "/models", "file:///models")))


def test_a_storage_configuration_stands_for_variables_and_may_be_overridden() -> None:
    config = {"access_key_id": "a", "secret_access_key": "b", "endpoint_url": "http://x", "region": "eu"}
    environ = {"STORAGE_CONFIG": json.dumps(config), "STORAGE_OVERRIDE_CONFIG": '{"region": "us"}', "HOME": "/"}
    found = with_config(environ)
    assert (found["AWS_ACCESS_KEY_ID"], found["AWS_DEFAULT_REGION"], found["HOME"]) == ("a", "us", "/")
    with pytest.raises(StorageError, match="STORAGE_CONFIG"):
        with_config({"STORAGE_CONFIG": "{"})


def test_an_object_is_stored_under_its_very_name() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://s3.test", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}
    request = put_request("s3://b/logs/a%252F1.json", environ, b"{}", "application/json")
    # The server undoes one level: the name is "logs/a%2F1.json".
    assert (request.get_method(), request.full_url) == ("PUT", "http://s3.test/b/logs/a%252F1.json")
    assert "SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date" in request.headers["Authorization"]
