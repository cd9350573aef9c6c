"""
Google Cloud Storage (its XML API) and Azure Blob Storage as far as a client of objects speaks them; every request must
be signed by an account that may use the bucket. Run by test_object_stores.py: no package that installs in seconds has
one that checks who asks.

``python cloud_server.py ACCOUNTS URL_FILE``. ACCOUNTS is JSON: ``{"gs": {EMAIL: {"key": PEM of the public key,
"bucket": NAME}}, "az": {ACCOUNT: base64 key}}``. Google's is served below ``/``, Azure's below ``/ACCOUNT``.

Source: the references of Google's XML API and of the Blob service's REST API (Shared Key, list, block list, batch).
"""

import base64
import email.parser
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

ACCOUNTS: dict[str, dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text())
OBJECTS: dict[tuple[str, str], dict[str, bytes]] = {}  # (account or "", bucket) -> key -> content
PARTS: dict[str, dict[str, bytes]] = {}
PAGE = 2  # so that a folder of three files has more than one page
DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
SIGNED = "content-encoding content-language content-length content-md5 content-type date if-modified-since if-match"
SIGNED += " if-none-match if-unmodified-since range"


class Refusal(Exception):
    """An HTTP status and a code."""


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def google_account(token: str) -> str:
    """Return the account that has signed a token for itself."""
    try:
        signed, signature = token.rsplit(".", 1)
        claims = json.loads(decoded(signed.partition(".")[2]))
        key = load_pem_public_key(ACCOUNTS["gs"][claims["iss"]]["key"].encode())
        assert isinstance(key, RSAPublicKey)
        key.verify(decoded(signature), signed.encode(), PKCS1v15(), SHA256())
    except (ValueError, KeyError, InvalidSignature) as error:
        raise Refusal(401, "AuthenticationRequired") from error
    if claims["exp"] < time.time():
        raise Refusal(401, "AuthenticationRequired")
    return str(claims["iss"])


def azure_signature(method: str, path: str, headers: Any, account: str) -> str:
    parts = urlsplit(path)
    lines = [method, *("" if (name, value) == ("content-length", "0") else value for name, value in own(headers))]
    lines += sorted(f"{n.lower()}:{v.strip()}" for n, v in headers.items() if n.lower().startswith("x-ms-"))
    query = sorted((name.lower(), value) for name, value in parse_qsl(parts.query, keep_blank_values=True))
    text = "\n".join([*lines, f"/{account}{parts.path}", *(f"{name}:{value}" for name, value in query)])
    key = base64.b64decode(ACCOUNTS["az"][account])
    return base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()


def own(headers: Any) -> list[tuple[str, str]]:
    return [
        (name, "" if name == "date" and "x-ms-date" in headers else headers.get(name, "")) for name in SIGNED.split()
    ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            first = unquote(urlsplit(self.path).path).strip("/").partition("/")[0]
            status, body, more = self.azure(first) if first in ACCOUNTS["az"] else self.google()
        except Refusal as refusal:
            status, code = refusal.args
            body, more = f"<Error><Code>{code}</Code></Error>".encode(), {}
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def log_message(self, format: str, *args: Any) -> None:
        print(f"{self.command} {self.path} {args[1]}", flush=True)

    def asked(self, path: str) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(path)
        bucket, _, key = unquote(parts.path).strip("/").partition("/")
        return bucket, key, dict(parse_qsl(parts.query, keep_blank_values=True))

    def content(self, held: dict[str, bytes], key: str) -> tuple[int, bytes, dict[str, str]]:
        if key not in held:
            raise Refusal(404, "NoSuchKey")
        body = held[key]
        headers = {"ETag": etag(body), "Last-Modified": DATE, "Content-Type": "application/octet-stream"}
        return 200, body, headers

    # ---- Google

    def google(self) -> tuple[int, bytes, dict[str, str]]:
        bucket, key, query = self.asked(self.path)
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        account = google_account(token if scheme == "Bearer" else "")
        if bucket not in {one["bucket"] for one in ACCOUNTS["gs"].values()}:
            raise Refusal(404, "NoSuchBucket")
        if ACCOUNTS["gs"][account]["bucket"] != bucket:
            raise Refusal(403, "AccessDenied")
        held = OBJECTS.setdefault(("", bucket), {})
        if self.command == "PUT" and "partNumber" in query:
            PARTS[query["uploadId"]][query["partNumber"].zfill(5)] = self.body
            return 200, b"", {"ETag": etag(self.body)}
        if self.command == "PUT":
            held[key] = self.body
            return 200, b"", {"ETag": etag(self.body)}
        if self.command == "POST" and "uploads" in query:
            upload = str(len(PARTS))
            PARTS[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return 200, text.encode(), {}
        if self.command == "POST":
            wanted = [one.text or "" for one in ElementTree.fromstring(self.body).iter("PartNumber")]
            parts = PARTS.pop(query["uploadId"])
            held[key] = b"".join(parts[number.zfill(5)] for number in wanted)
            text = f"<CompleteMultipartUploadResult><ETag>{etag(held[key])}</ETag></CompleteMultipartUploadResult>"
            return 200, text.encode(), {}
        if self.command == "DELETE":
            if held.pop(key, None) is None:
                raise Refusal(404, "NoSuchKey")
            return 204, b"", {}
        if key:
            return self.content(held, key)
        keys, marker = page(held, query.get("prefix", ""), query.get("continuation-token", ""))
        items = "".join(
            f"<Contents><Key>{escape(one)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{etag(held[one])}</ETag><Size>{len(held[one])}</Size></Contents>"
            for one in keys
        )
        more = f"<NextContinuationToken>{escape(marker)}</NextContinuationToken>" if marker else ""
        return 200, f"<ListBucketResult>{items}{more}</ListBucketResult>".encode(), {}

    # ---- Azure

    def azure(self, account: str) -> tuple[int, bytes, dict[str, str]]:
        expected = f"SharedKey {account}:{azure_signature(self.command, self.path, self.headers, account)}"
        if not hmac.compare_digest(self.headers.get("authorization", ""), expected):
            raise Refusal(403, "AuthenticationFailed")
        _, rest, query = self.asked(self.path)
        container, _, key = rest.partition("/")
        if query.get("comp") == "batch":
            return self.batch(account)
        if (self.command, query.get("restype"), query.get("comp")) == ("PUT", "container", None):
            OBJECTS.setdefault((account, container), {})
            return 201, b"", {}
        if (account, container) not in OBJECTS:
            raise Refusal(404, "ContainerNotFound")
        held = OBJECTS[account, container]
        block = f"{account}/{container}/{key}"
        made = {"ETag": etag(self.body), "Last-Modified": DATE}
        if self.command == "PUT" and query.get("comp") == "block":
            PARTS.setdefault(block, {})[query["blockid"]] = self.body
            return 201, b"", {}
        if self.command == "PUT" and query.get("comp") == "blocklist":
            blocks = PARTS.pop(block)
            held[key] = b"".join(blocks[one.text or ""] for one in ElementTree.fromstring(self.body))
            return 201, b"", made
        if self.command == "PUT":
            held[key] = self.body
            return 201, b"", made
        if query.get("comp") == "list":
            keys, marker = page(held, query.get("prefix", ""), query.get("marker", ""))
            items = "".join(
                f"<Blob><Name>{escape(one)}</Name><Properties><Last-Modified>{DATE}</Last-Modified>"
                f"<Content-Length>{len(held[one])}</Content-Length><Content-Type>application/octet-stream"
                f"</Content-Type><Etag>{etag(held[one])}</Etag></Properties></Blob>"
                for one in keys
            )
            text = f"<EnumerationResults><Blobs>{items}</Blobs><NextMarker>{escape(marker)}</NextMarker>"
            return 200, f"\ufeff{text}</EnumerationResults>".encode(), {}
        if self.command == "DELETE":
            if held.pop(key, None) is None:
                raise Refusal(404, "BlobNotFound")
            return 202, b"", {}
        status, body, headers = self.content(held, key)
        return status, body, headers | {"x-ms-blob-type": "BlockBlob"}

    def batch(self, account: str) -> tuple[int, bytes, dict[str, str]]:
        """Do what several requests in one ask for; each is signed by itself."""
        parse = email.parser.BytesParser().parsebytes
        whole = parse(f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode() + self.body)
        lines = []
        for number, part in enumerate(whole.get_payload()):
            request, _, rest = part.get_payload(decode=True).lstrip().partition(b"\r\n")
            method, path, _ = request.decode().split(" ")
            headers = parse(rest)
            _, place, _ = self.asked(path)
            container, _, key = place.partition("/")
            expected = f"SharedKey {account}:{azure_signature(method, path, headers, account)}"
            status = 403
            if hmac.compare_digest(headers.get("authorization", ""), expected):
                status = 404 if OBJECTS[account, container].pop(key, None) is None else 202
            code = "" if status == 202 else "x-ms-error-code: BlobNotFound\r\n"
            lines.append(
                f"--answers\r\nContent-Type: application/http\r\nContent-ID: {part['Content-ID'] or number}\r\n\r\n"
                f"HTTP/1.1 {status} x\r\n{code}\r\n\r\n"
            )
        text = "".join(lines) + "--answers--\r\n"
        return 202, text.encode(), {"Content-Type": "multipart/mixed; boundary=answers"}


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def page(held: dict[str, bytes], prefix: str, after: str) -> tuple[list[str], str]:
    keys = sorted(key for key in held if key.startswith(prefix) and key > after)
    return keys[:PAGE], keys[PAGE - 1] if len(keys) > PAGE else ""


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
part = Path(sys.argv[2] + ".part")
part.write_text(f"http://127.0.0.1:{server.server_port}")
os.rename(part, sys.argv[2])
server.serve_forever()
