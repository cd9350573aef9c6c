"""
Every error that shallop raises on purpose.

    ShallopError
    |- ApiError                  what a Kubernetes API answers; carries code, reason and details
    |  |- BadRequestError 400    UnauthorizedError 401   ForbiddenError 403   NotFoundError 404
    |  |- MethodNotAllowedError 405   NotAcceptableError 406   AlreadyExistsError 409   ConflictError 409
    |  |- ExpiredError 410   TooLargeError 413   UnsupportedMediaTypeError 415   InvalidError 422
    |  |- TooManyRequestsError 429   InternalError 500   UnavailableError 503   TimeoutStatusError 504
    |- TerminalError             a reconcile that no retry can help
    |- SettingsError             a setting that cannot be used
    |- PortTakenError            a port that another program listens on
    |- ImageResolutionError      no local environment for an image
    |- EnvironmentBuildError     an environment that could not be built
    |- ObjectStoreError          an artifact that cannot be brought or stored
    |- NodeError                 a Pod that this machine cannot run as asked
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

__all__ = [
    "AlreadyExistsError",
    "ApiError",
    "BadRequestError",
    "ConflictError",
    "EnvironmentBuildError",
    "ExpiredError",
    "FieldError",
    "ForbiddenError",
    "ImageResolutionError",
    "InternalError",
    "InvalidError",
    "MethodNotAllowedError",
    "NodeError",
    "NotAcceptableError",
    "NotFoundError",
    "ObjectStoreError",
    "PortTakenError",
    "SettingsError",
    "ShallopError",
    "TerminalError",
    "TimeoutStatusError",
    "TooLargeError",
    "TooManyRequestsError",
    "UnauthorizedError",
    "UnavailableError",
    "UnsupportedMediaTypeError",
    "api_error",
]


class ShallopError(Exception):
    """Base of all errors raised on purpose."""


class FieldError(NamedTuple):
    """
    One thing wrong with one field, as an API server reports it.

    Args:
        reason: a Kubernetes cause reason such as ``FieldValueRequired``.
        message: the text after the field path, such as ``Required value``.
        field: path from the root of the object, such as ``spec.containers[0].name``.
    """

    reason: str
    message: str
    field: str

    @classmethod
    def required(cls, field: str, detail: str = "") -> Self:
        return cls("FieldValueRequired", f"Required value{': ' + detail if detail else ''}", field)

    @classmethod
    def invalid(cls, field: str, value: object, detail: str) -> Self:
        return cls("FieldValueInvalid", f"Invalid value: {_show(value)}: {detail}", field)

    @classmethod
    def not_supported(cls, field: str, value: object, supported: Sequence[str]) -> Self:
        choices = ", ".join(f'"{choice}"' for choice in supported)
        return cls("FieldValueNotSupported", f"Unsupported value: {_show(value)}: supported values: {choices}", field)

    @classmethod
    def forbidden(cls, field: str, detail: str) -> Self:
        return cls("FieldValueForbidden", f"Forbidden: {detail}", field)


def _show(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


class ApiError(ShallopError):
    """An answer of a Kubernetes API that is not success; subclasses fix code and reason."""

    code = 500
    reason = "InternalError"

    def __init__(
        self, message: str, *, details: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.metadata = metadata or {}

    def status(self) -> dict[str, Any]:
        """Return the ``Status`` object that goes on the wire."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = self.details
        status["code"] = self.code
        return status


class BadRequestError(ApiError):
    code, reason = 400, "BadRequest"


class UnauthorizedError(ApiError):
    code, reason = 401, "Unauthorized"


class ForbiddenError(ApiError):
    code, reason = 403, "Forbidden"


class NotFoundError(ApiError):
    code, reason = 404, "NotFound"


class MethodNotAllowedError(ApiError):
    code, reason = 405, "MethodNotAllowed"


class NotAcceptableError(ApiError):
    code, reason = 406, "NotAcceptable"


class AlreadyExistsError(ApiError):
    code, reason = 409, "AlreadyExists"


class ConflictError(ApiError):
    code, reason = 409, "Conflict"


class ExpiredError(ApiError):
    code, reason = 410, "Expired"


class TooLargeError(ApiError):
    code, reason = 413, "RequestEntityTooLarge"


class UnsupportedMediaTypeError(ApiError):
    code, reason = 415, "UnsupportedMediaType"


class InvalidError(ApiError):
    """The object was understood and refused; ``causes`` name the fields."""

    code, reason = 422, "Invalid"

    @classmethod
    def of(cls, kind: str, group: str, name: str, causes: Sequence[FieldError]) -> Self:
        """Build the standard message and details from field errors; at least one cause."""
        texts = list(dict.fromkeys(f"{cause.field}: {cause.message}" for cause in causes))
        what = f"{kind}.{group}" if group else kind
        summary = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
        details: dict[str, Any] = {"name": name, "group": group, "kind": kind}
        details["causes"] = [{"reason": c.reason, "message": c.message, "field": c.field} for c in causes]
        return cls(f'{what} "{name}" is invalid: {summary}', details={k: v for k, v in details.items() if v})


class TooManyRequestsError(ApiError):
    code, reason = 429, "TooManyRequests"


class InternalError(ApiError):
    code, reason = 500, "InternalError"


class UnavailableError(ApiError):
    code, reason = 503, "ServiceUnavailable"


class TimeoutStatusError(ApiError):
    code, reason = 504, "Timeout"


_BY_REASON: dict[str, type[ApiError]] = {cls.reason: cls for cls in ApiError.__subclasses__()}
_BY_CODE: dict[int, type[ApiError]] = {
    cls.code: cls for cls in ApiError.__subclasses__() if cls is not AlreadyExistsError
}


def api_error(code: int, status: dict[str, Any]) -> ApiError:
    """Turn an HTTP code and the ``Status`` body of a remote server into the narrowest ApiError."""
    reason = str(status.get("reason", ""))
    cls = _BY_REASON.get(reason) or _BY_CODE.get(code) or ApiError
    error = cls(
        str(status.get("message", f"HTTP {code}")), details=status.get("details"), metadata=status.get("metadata")
    )
    error.code = code
    error.reason = reason
    return error


class TerminalError(ShallopError):
    """Reconciling this version of the object again cannot help; wait for it to change."""


class SettingsError(ShallopError):
    """A setting has a value that cannot be used."""


class PortTakenError(SettingsError):
    """A port is in use by another program."""


class ObjectStoreError(ShallopError):
    """Something in an object store cannot be read or written."""


class NodeError(ShallopError):
    """This machine cannot run the Pod as it is declared."""


class ImageResolutionError(NodeError):
    """No local environment stands for an image."""


class EnvironmentBuildError(NodeError):
    """An environment could not be built."""
