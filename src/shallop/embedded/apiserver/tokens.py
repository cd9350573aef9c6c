"""Bearer tokens: the administrator's, and signed tokens of service accounts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from shallop.embedded.apiserver.objects_store import ObjectsStore, encode_object
from shallop.embedded.apiserver.requests import ADMIN, ANONYMOUS, AUTHENTICATED, User, account_groups
from shallop.embedded.apiserver.tls import write_private
from shallop.errors import ConflictError, FieldError, InvalidError, NotFoundError, UnauthorizedError
from shallop.kube.objects import Object, format_time, new_uid

__all__ = ["AUDIENCE", "Tokens", "ensure_admin_token"]

AUDIENCE = "https://kubernetes.default.svc.cluster.local"
_MIN_S = 600
_DEFAULT_S = 3600
_MAX_S = 1 << 32
_ALGORITHM = ec.ECDSA(hashes.SHA256())


def ensure_admin_token(path: Path) -> str:
    """Return the administrator's token, 256 random bits, made at first use."""
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = ""
    if not token:
        token = secrets.token_urlsafe(32)
        write_private(path, token.encode())
    return token


class Tokens:
    """
    Says who a bearer token stands for, and issues tokens for service accounts.

    Args:
        key_file: private key of the signatures, made at first use; None = a key for the life of this process.
        users: further fixed tokens, such as those of people in multi-user mode.
        now: aware UTC clock.
    """

    def __init__(
        self,
        store: ObjectsStore,
        admin_token: str,
        key_file: Path | None,
        now: Callable[[], datetime],
        users: Mapping[str, User] | None = None,
    ) -> None:
        self._store = store
        self._users = {admin_token: ADMIN, **(users or {})}
        self._key_file = key_file
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._now = now

    def authenticate(self, authorization: str | None) -> User:
        """
        Return the user of an Authorization header; without one, the anonymous user.

        Raises:
            UnauthorizedError: the token is unknown, expired or of an account that is gone.
        """
        if authorization is None:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise UnauthorizedError("Unauthorized")
        user = self.user_of(token.strip())
        if user is None:
            raise UnauthorizedError("Unauthorized")
        return user

    def user_of(self, token: str, audience: str = AUDIENCE) -> User | None:
        given = token.encode()
        found = None
        for known, user in self._users.items():
            # Every token is compared, in constant time: the duration tells nothing.
            if hmac.compare_digest(known.encode(), given):
                found = user
        if found is not None or token.count(".") != 2:
            return found
        return self._account_user(token, audience)

    def audiences_of(self, token: str) -> tuple[str, ...]:
        """Return for whom a token of ours was issued; empty when it is none of ours."""
        claims = self._verify(token) if token.count(".") == 2 else None
        return tuple(claims.get("aud") or ()) if claims else ()

    def issue(self, account: Object, request: Object) -> Object:
        """Return a TokenRequest answered with a token for a ServiceAccount."""
        spec = request.get("spec") or {}
        seconds = spec.get("expirationSeconds") or _DEFAULT_S
        problems = []
        if seconds < _MIN_S:
            text = "may not specify a duration less than 10 minutes"
            problems.append(FieldError.invalid("spec.expirationSeconds", seconds, text))
        if seconds > _MAX_S:
            text = "may not specify a duration larger than 2^32 seconds"
            problems.append(FieldError.invalid("spec.expirationSeconds", seconds, text))
        if problems:
            raise InvalidError.of("TokenRequest", "authentication.k8s.io", "", problems)
        audiences = spec.get("audiences") or [AUDIENCE]
        now = self._now()
        expires = now + timedelta(seconds=seconds)
        metadata = account["metadata"]
        bound: Object = {
            "namespace": metadata["namespace"],
            "serviceaccount": {"name": metadata["name"], "uid": metadata["uid"]},
        }
        reference = spec.get("boundObjectRef") or {}
        if reference.get("kind"):
            self._check_bound(metadata["namespace"], reference)
            bound[reference["kind"].lower()] = {"name": reference.get("name", ""), "uid": reference.get("uid", "")}
        claims = {
            "aud": audiences,
            "exp": int(expires.timestamp()),
            "iat": int(now.timestamp()),
            "iss": AUDIENCE,
            "jti": new_uid(),
            "kubernetes.io": bound,
            "nbf": int(now.timestamp()),
            "sub": f"system:serviceaccount:{metadata['namespace']}:{metadata['name']}",
        }
        kept = {key: metadata[key] for key in ("name", "namespace", "uid")}
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": kept | {"creationTimestamp": format_time(now)},
            "spec": {
                "audiences": audiences,
                "expirationSeconds": seconds,
                "boundObjectRef": reference or None,
            },
            "status": {"token": self._sign(claims), "expirationTimestamp": format_time(expires)},
        }

    def _check_bound(self, namespace: str, reference: Object) -> None:
        kind, name = reference["kind"], reference.get("name", "")
        plural = {"Pod": "pods", "Secret": "secrets"}.get(kind)
        if plural is None:
            problem = FieldError.not_supported("spec.boundObjectRef.kind", kind, ["Pod", "Secret"])
            raise InvalidError.of("TokenRequest", "authentication.k8s.io", "", [problem])
        stored = self._store.get(plural, namespace, name)
        if stored is None:
            raise NotFoundError(f'{plural} "{name}" not found', details={"name": name, "kind": plural})
        if reference.get("uid") and stored.object["metadata"]["uid"] != reference["uid"]:
            message = (
                f'Operation cannot be fulfilled on {plural} "{name}": the UID in the bound object reference '
                f"({reference['uid']}) does not match the UID in record. The object might have been deleted and "
                "then recreated"
            )
            raise ConflictError(message, details={"name": name, "kind": plural})

    def _account_user(self, token: str, audience: str) -> User | None:
        claims = self._verify(token)
        if claims is None or audience not in claims.get("aud", ()):
            return None
        now = self._now().timestamp()
        if not claims.get("nbf", 0) <= now < claims.get("exp", 0):
            return None
        bound = claims["kubernetes.io"]
        namespace, account = bound["namespace"], bound["serviceaccount"]
        stored = self._store.get("serviceaccounts", namespace, account["name"])
        if stored is None or stored.object["metadata"]["uid"] != account["uid"]:
            return None
        pod = bound.get("pod")
        if pod:
            running = self._store.get("pods", namespace, pod["name"])
            if running is None or (pod.get("uid") and running.object["metadata"]["uid"] != pod["uid"]):
                return None
        extra = {"authentication.kubernetes.io/credential-id": (f"JTI={claims.get('jti', '')}",)}
        if pod:
            extra["authentication.kubernetes.io/pod-name"] = (pod["name"],)
            extra["authentication.kubernetes.io/pod-uid"] = (pod.get("uid", ""),)
        return User(claims["sub"], (*account_groups(claims["sub"]), AUTHENTICATED), account["uid"], extra)

    @property
    def _private_key(self) -> ec.EllipticCurvePrivateKey:
        if self._key is None:
            self._key = _load_key(self._key_file)
        return self._key

    def public_key(self) -> Object:
        """Return the key that verifies signatures, as a JSON Web Key (RFC 7517)."""
        numbers = self._private_key.public_key().public_numbers()
        x, y = (_base64(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        key: Object = {"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}
        return key | {"kid": self._key_id}

    @cached_property
    def _key_id(self) -> str:
        der = self._private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return _base64(hashlib.sha256(der).digest())

    @cached_property
    def _header(self) -> str:
        return _encode({"alg": "ES256", "kid": self._key_id})

    def _sign(self, claims: Object) -> str:
        payload = f"{self._header}.{_encode(claims)}"
        r, s = decode_dss_signature(self._private_key.sign(payload.encode(), _ALGORITHM))
        return f"{payload}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def _verify(self, token: str) -> Object | None:
        payload, _, text = token.rpartition(".")
        try:
            signature = _unbase64(text)
            header, claims = (json.loads(_unbase64(part)) for part in payload.split("."))
            if header.get("alg") != "ES256" or len(signature) != 64:
                return None
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            public = self._private_key.public_key()
            public.verify(encode_dss_signature(r, s), payload.encode(), _ALGORITHM)
        except (ValueError, AttributeError, InvalidSignature):
            return None
        return claims if isinstance(claims, dict) and isinstance(claims.get("kubernetes.io"), dict) else None


def _load_key(path: Path | None) -> ec.EllipticCurvePrivateKey:
    if path is not None and path.exists():
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
        if isinstance(loaded, ec.EllipticCurvePrivateKey):
            return loaded
    key = ec.generate_private_key(ec.SECP256R1())
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(path, pem)
    return key


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encode(value: Object) -> str:
    return _base64(encode_object(value))
