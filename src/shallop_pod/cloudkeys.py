"""
What proves to Google and Azure who asks, from the keys of their accounts. Standard library only.

Source: RFC 8017 (RSASSA-PKCS1-v1_5), RFC 7515 (JWS), RFC 5208 (PKCS #8); Google's service accounts without OAuth; Azure
Storage's service SAS, version 2021-08-06, and Entra ID's client credentials.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import json
import urllib.parse
import urllib.request
from collections.abc import Mapping

__all__ = ["CloudKeyError", "azure_sas", "azure_token_request", "google_token", "sign_rs256"]

_LIFETIME_S = 3600
_GOOGLE_AUDIENCE = "https://storage.googleapis.com/"
_AZURE_SCOPE, _AZURE_LOGIN = "https://storage.azure.com/.default", "https://login.microsoftonline.com"
_SAS_VERSION = "2021-08-06"
# How a SHA-256 is named in the block that is signed.
_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")
_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04


class CloudKeyError(ValueError):
    """A key cannot be read; the message does not hold it."""


def google_token(credentials: str, now: float) -> str:
    """
    Return the token by which a service account asks Cloud Storage, good for an hour.

    Args:
        credentials: the JSON file of the account's key.
    """
    try:
        account = json.loads(credentials)
        email, key, number = account["client_email"], account["private_key"], account.get("private_key_id")
    except (ValueError, KeyError, TypeError) as error:
        raise CloudKeyError("the credentials are not the JSON key of a service account") from error
    head = {"alg": "RS256", "typ": "JWT"} | ({"kid": number} if number else {})
    start = int(now)
    claims = {"iss": email, "sub": email, "aud": _GOOGLE_AUDIENCE, "iat": start, "exp": start + _LIFETIME_S}
    said = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
    return (said + b"." + _base64url(sign_rs256(key, said))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign_rs256(pem: str, message: bytes) -> bytes:
    """Sign with an RSA key, PKCS #8 or PKCS #1 in PEM."""
    modulus, exponent = _private_key(pem)
    size = (modulus.bit_length() + 7) // 8
    digest = _SHA256 + hashlib.sha256(message).digest()
    block = b"\x00\x01" + b"\xff" * (size - len(digest) - 3) + b"\x00" + digest
    return pow(int.from_bytes(block, "big"), exponent, modulus).to_bytes(size, "big")


def _private_key(pem: str) -> tuple[int, int]:
    """Return modulus and private exponent."""
    try:
        lines = [line.strip() for line in pem.strip().splitlines()]
        content = _value(base64.b64decode("".join(lines[1:-1])), _SEQUENCE)
        _, rest = _take(content, _INTEGER)
        if rest[0] == _SEQUENCE:
            # PKCS #8: the algorithm, and the key of PKCS #1 as a string of bytes.
            _, rest = _take(rest, _SEQUENCE)
            _, rest = _take(_value(_value(rest, _OCTETS), _SEQUENCE), _INTEGER)
        modulus, rest = _take(rest, _INTEGER)
        _, rest = _take(rest, _INTEGER)
        exponent, _ = _take(rest, _INTEGER)
    except (ValueError, IndexError, binascii.Error) as error:
        raise CloudKeyError("the private key is no RSA key in PEM") from error
    return int.from_bytes(modulus, "big"), int.from_bytes(exponent, "big")


def _take(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Return the value of the first element of DER, which must be of that kind, and what follows it."""
    if data[0] != tag:
        raise ValueError("not what was expected")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("cut short")
    return data[start : start + length], data[start + length :]


def _value(data: bytes, tag: int) -> bytes:
    return _take(data, tag)[0]


def azure_sas(account: str, container: str, key: str, now: datetime.datetime) -> str:
    """Return the query by which who knows an account's key lists and reads a container for an hour."""
    until = (now + datetime.timedelta(seconds=_LIFETIME_S)).strftime("%Y-%m-%dT%H:%M:%SZ")
    resource = f"/blob/{account}/{container}"
    # Permissions, start, end, resource, identifier, address, protocol, version, kind; snapshot, scope, five headers.
    signed = "\n".join(["rl", "", until, resource, "", "", "", _SAS_VERSION, "c", *[""] * 7])
    try:
        secret = base64.b64decode(key, validate=True)
    except binascii.Error as error:
        raise CloudKeyError("AZURE_STORAGE_ACCESS_KEY is no key of a storage account") from error
    signature = base64.b64encode(hmac.digest(secret, signed.encode(), "sha256")).decode()
    return urllib.parse.urlencode({"sp": "rl", "se": until, "sv": _SAS_VERSION, "sr": "c", "sig": signature})


def azure_token_request(environ: Mapping[str, str]) -> urllib.request.Request | None:
    """Return the request by which a service principal gets its token; None where no variables name one."""
    names = ("CLIENT_ID", "CLIENT_SECRET", "TENANT_ID")
    found = [environ.get(f"AZ_{name}") or environ.get(f"AZURE_{name}") or "" for name in names]
    if not all(found):
        return None
    client, secret, tenant = found
    body = {
        "grant_type": "client_credentials",
        "client_id": client,
        "client_secret": secret,
        "scope": _AZURE_SCOPE,
    }
    login = (environ.get("AZURE_AUTHORITY_HOST") or _AZURE_LOGIN).rstrip("/")
    url = f"{login if '://' in login else f'https://{login}'}/{urllib.parse.quote(tenant, safe='')}/oauth2/v2.0/token"
    return urllib.request.Request(url, urllib.parse.urlencode(body).encode())
