"""Object stores: signatures as AWS documents them, listings of each store, played by functions."""

from __future__ import annotations

import base64
import json
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from shallop_pod.cloudkeys import azure_sas
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


def google_key(format_: serialization.PrivateFormat) -> tuple[rsa.RSAPublicKey, str]:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, format_, serialization.NoEncryption()).decode()
    return key.public_key(), json.dumps({"client_email": "me@team", "private_key": pem, "private_key_id": "7"})


@pytest.mark.parametrize("format_", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_a_service_account_of_google_signs_for_itself(format_: serialization.PrivateFormat) -> None:
    public, credentials = google_key(format_)
    environ = {"GOOGLE_APPLICATION_CREDENTIALS_JSON": credentials}
    (found,) = list_objects("gs://bucket/m", environ, Server(first={"items": [{"name": "m/a"}]}))
    said, _, signature = found.request().headers["Authorization"].removeprefix("Bearer ").rpartition(".")

    def decoded(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    public.verify(decoded(signature), said.encode(), padding.PKCS1v15(), hashes.SHA256())
    head, claims = (json.loads(decoded(part)) for part in said.split("."))
    assert head == {"alg": "RS256", "typ": "JWT", "kid": "7"}
    assert (claims["iss"], claims["aud"]) == ("me@team", "https://storage.googleapis.com/")
    assert claims["exp"] - claims["iat"] == 3600


@pytest.mark.parametrize(
    "credentials",
    ["{", "[]", '{"client_email": "me", "private_key": "no"}', '{"client_email": "me", "private_key": "a\\nMAA=\\nb"}'],
)
def test_a_key_of_google_that_cannot_be_read_is_told(credentials: str) -> None:
    with pytest.raises(ObjectStoreError, match="Google Cloud Storage: the "):
        list(list_objects("gs://bucket/m", {"GOOGLE_APPLICATION_CREDENTIALS_JSON": credentials}, Server(first={})))


def test_a_key_of_an_azure_account_signs_as_the_library_of_azure_does() -> None:
    key = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
    # The signature is that of azure-storage-blob 12.31, told to use the same version.
    assert dict(urllib.parse.parse_qsl(azure_sas("acct", "models", key, datetime(2026, 8, 1, 12, tzinfo=UTC)))) == {
        "sp": "rl",
        "se": "2026-08-01T13:00:00Z",
        "sv": "2021-08-06",
        "sr": "c",
        "sig": "pNlCDCQM0qcaIRpZfr/hH+sqxCJFBpAHohqIJvwl0NA=",
    }
    with pytest.raises(ObjectStoreError, match="no key of a storage account"):
        uri = "https://acct.blob.core.windows.net/models/m"
        list(list_objects(uri, {"AZURE_STORAGE_ACCESS_KEY": "no key"}, Server(first="")))


def test_a_service_principal_of_azure_asks_for_its_token_first() -> None:
    page = "<EnumerationResults><Blobs><Blob><Name>m/a</Name></Blob></Blobs><NextMarker/></EnumerationResults>"
    asked: list[urllib.request.Request] = []

    def fetch(request: urllib.request.Request) -> bytes:
        asked.append(request)
        return page.encode() if request.data is None else b'{"access_token": "t"}'

    environ = {"AZ_CLIENT_ID": "c", "AZ_CLIENT_SECRET": "s", "AZ_TENANT_ID": "t/1"}
    (found,) = list_objects("https://acct.blob.core.windows.net/models/m", environ, fetch)
    assert asked[0].full_url == "https://login.microsoftonline.com/t%2F1/oauth2/v2.0/token"
    assert dict(urllib.parse.parse_qsl(str(asked[0].data, "ascii")))["scope"] == "https://storage.azure.com/.default"
    assert found.request().headers["Authorization"] == asked[1].headers["Authorization"] == "Bearer t"
