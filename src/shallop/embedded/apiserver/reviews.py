"""Answers to "who am I" and "may I": nothing of it is stored."""

from __future__ import annotations

import json
from datetime import datetime

from shallop.embedded.apiserver.authorization import Attributes, Rbac
from shallop.embedded.apiserver.requests import User
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.tokens import AUDIENCE, Tokens
from shallop.errors import BadRequestError, FieldError, InvalidError
from shallop.kube.objects import Object, format_time

__all__ = ["is_review", "review"]

_GROUPS = ("authentication.k8s.io", "authorization.k8s.io")


def is_review(resource: Resource) -> bool:
    return resource.group in _GROUPS and not resource.custom


def review(
    resource: Resource, namespace: str, body: Object, user: User, tokens: Tokens, authorize: Rbac, now: datetime
) -> Object:
    """Return the review with its status filled."""
    spec = body.get("spec") or {}
    head: Object = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": body.get("metadata") or {}}
    if resource.kind == "SelfSubjectReview":
        head["metadata"] = head["metadata"] | {"creationTimestamp": format_time(now)}
        return head | {"status": {"userInfo": _user_info(user)}}
    if resource.kind == "TokenReview":
        if not spec.get("token"):
            raise BadRequestError("token is required for TokenReview in authentication")
        return head | {"spec": spec, "status": _token_status(spec, tokens)}
    if resource.kind == "SelfSubjectRulesReview":
        wanted = spec.get("namespace", "")
        if not wanted:
            raise BadRequestError("no namespace on request")
        return head | {"spec": {}, "status": _rules(authorize, user, wanted)}
    if resource.kind != "SelfSubjectAccessReview":
        if not spec.get("user") and not spec.get("groups"):
            text = "at least one of user or group must be specified"
            problem = FieldError.invalid("spec.user", "", text)
            # The real server leaves the kind out of this message, and of details.
            raise InvalidError.of("", resource.group, "", [problem])
        user = User(spec.get("user", ""), tuple(spec.get("groups") or ()), spec.get("uid", ""))
    allowed, reason = authorize(user, _attributes(resource, namespace, spec))
    return head | {"spec": spec, "status": {"allowed": allowed} | ({"reason": reason} if reason else {})}


def _attributes(resource: Resource, namespace: str, spec: Object) -> Attributes:
    wanted, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
    if wanted and path:
        shown = json.dumps({"Path": path.get("path", ""), "Verb": path.get("verb", "")}, separators=(",", ":"))
        text = f"Invalid value: {shown}: cannot be specified in combination with resourceAttributes"
        problem = FieldError("FieldValueInvalid", text, "spec.nonResourceAttributes")
        raise InvalidError.of("", resource.group, "", [problem])
    if not wanted and not path:
        text = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        problem = FieldError.invalid("spec.resourceAttributes", None, text)
        raise InvalidError.of("", resource.group, "", [problem])
    if path:
        return Attributes(verb=path.get("verb", ""), path=path.get("path", "/"))
    wanted = wanted or {}
    plural = wanted.get("resource", "")
    if wanted.get("subresource"):
        plural += f"/{wanted['subresource']}"
    return Attributes(
        verb=wanted.get("verb", ""),
        group=wanted.get("group", ""),
        resource=plural,
        namespace=wanted.get("namespace", "") or (namespace if resource.namespaced else ""),
        name=wanted.get("name", ""),
    )


def _user_info(user: User) -> Object:
    info: Object = {"username": user.name}
    if user.uid:
        info["uid"] = user.uid
    info["groups"] = list(user.groups)
    if user.extra:
        info["extra"] = {key: list(values) for key, values in user.extra.items()}
    return info


def _token_status(spec: Object, tokens: Tokens) -> Object:
    audiences = spec.get("audiences") or [AUDIENCE]
    for audience in audiences:
        user = tokens.user_of(spec.get("token", ""), audience)
        if user is not None:
            return {"authenticated": True, "user": _user_info(user), "audiences": [audience]}
    error = "invalid bearer token"
    if others := tokens.audiences_of(spec.get("token", "")):
        theirs, wanted = (json.dumps(list(names)) for names in (others, audiences))
        error = f"[{error}, token audiences {theirs} is invalid for the target audiences {wanted}]"
    return {"user": {}, "error": error}


def _rule(rule: Object, *keys: str) -> Object:
    return {key: rule[key] for key in ("verbs", *keys) if rule.get(key)}


def _rules(authorize: Rbac, user: User, namespace: str) -> Object:
    rules = authorize.rules_of(user, namespace)
    return {
        "resourceRules": [
            _rule(rule, "apiGroups", "resources", "resourceNames") for rule in rules if rule.get("resources")
        ],
        "nonResourceRules": [_rule(rule, "nonResourceURLs") for rule in rules if rule.get("nonResourceURLs")],
        "incomplete": False,
    }
