"""OpenID discovery: how others verify the tokens of service accounts."""

from __future__ import annotations

from shallop.embedded.apiserver.answers import Answer
from shallop.embedded.apiserver.objects_store import encode_object
from shallop.embedded.apiserver.tokens import AUDIENCE, Tokens
from shallop.errors import NotAcceptableError
from shallop.kube.objects import Object

__all__ = ["configuration", "key_set"]

_KEY_SET = "application/jwk-set+json"


def configuration(host: str) -> Object:
    return {
        "issuer": AUDIENCE,
        "jwks_uri": f"https://{host}/openid/v1/jwks",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }


def key_set(tokens: Tokens, accept: str) -> Answer:
    """
    Raises:
        NotAcceptableError: the client wants another media type.
    """
    wanted = {part.partition(";")[0].strip() for part in accept.split(",")}
    if not wanted & {"", "*/*", "application/*", _KEY_SET}:
        raise NotAcceptableError(f"406: Not Acceptable\n\nAvailable representations: {_KEY_SET}", details={})
    return Answer(encode_object({"keys": [tokens.public_key()]}), content_type=_KEY_SET)
