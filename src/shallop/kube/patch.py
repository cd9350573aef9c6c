"""
The three patch formats of the Kubernetes API, as pure functions.

- ``json_patch(obj, operations) -> Object``: RFC 6902.
- ``merge_patch(obj, patch) -> Object``: RFC 7386.
- ``strategic_merge_patch(obj, patch, type_name, lookup) -> Object``: Kubernetes' own format; ``lookup(type_name, f)``
  tells how a field of a built-in type merges: pass ``embedded.apiserver.builtin_types.merge_rule``.

Results share unchanged parts with their input, and no input is ever changed.

Source: RFC 6902, RFC 7386; strategic merge as recorded from a real API server in tests/unit/kube.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from shallop.errors import BadRequestError, InvalidError

Object = dict[str, Any]

_DIRECTIVE = "$patch"
_RETAIN_KEYS = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"


class FieldMerge(NamedTuple):
    """How one field merges: the type of the value (or of its items), whether its list merges, by which key."""

    type_name: str = ""
    merge: bool = False
    key: str = ""


MergeLookup = Callable[[str, str], FieldMerge]


def merge_patch(obj: Object, patch: Any) -> Object:
    """
    Apply a JSON merge patch: maps merge, null deletes, everything else replaces.

    Raises:
        BadRequestError: the patch is not a map.
    """
    if not isinstance(patch, dict):
        raise BadRequestError(f"error decoding patch: a merge patch must be an object, not {_json_type(patch)}")
    return _merge_maps(obj, patch)


def _merge_maps(target: Any, patch: Mapping[str, Any]) -> Object:
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _merge_maps(merged.get(key), value)
        else:
            merged[key] = value
    return merged


# ---- JSON patch


def json_patch(obj: Object, operations: Any) -> Object:
    """
    Apply a list of JSON patch operations, all or none.

    ``replace`` of a missing key of a map adds it, as the real server does.

    Raises:
        BadRequestError: not a list of operations.
        InvalidError: an operation cannot be applied, or a ``test`` failed.
    """
    if not isinstance(operations, list) or not all(isinstance(item, dict) for item in operations):
        raise BadRequestError("error decoding patch: a JSON patch must be a list of operations")
    document: Any = obj
    for operation in operations:
        try:
            document = _apply_operation(document, operation)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            # The real server answers every failed operation with this text; clients match on it.
            raise InvalidError("the server rejected our request due to an error in our request") from error
    if not isinstance(document, dict):
        raise InvalidError("the server rejected our request due to an error in our request")
    return document


def _apply_operation(document: Any, operation: Mapping[str, Any]) -> Any:
    name = operation["op"]
    path = _pointer(operation["path"])
    match name:
        case "add":
            return _edit(document, path, _adder(operation["value"]))
        case "replace":
            return _edit(document, path, _replacer(operation["value"]))
        case "remove":
            return _edit(document, path, _remove)
        case "copy":
            return _edit(document, path, _adder(_read(document, _pointer(operation["from"]))))
        case "move":
            source = _pointer(operation["from"])
            if path[: len(source)] == source and path != source:
                raise ValueError("cannot move a value into itself")
            return _edit(_edit(document, source, _remove), path, _adder(_read(document, source)))
        case "test":
            if not json_equal(_read_or_none(document, path), operation.get("value")):
                raise ValueError("test failed")
            return document
    raise ValueError(f"unknown operation {name!r}")


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise ValueError("a JSON pointer starts with /")
    return [token.replace("~1", "/").replace("~0", "~") for token in text[1:].split("/")]


def _index(token: str, size: int) -> int:
    if not token.isdigit() or (token != "0" and token.startswith("0")):
        raise ValueError(f"{token!r} is no index")
    index = int(token)
    if index >= size:
        raise IndexError(token)
    return index


def _read(node: Any, path: Sequence[str]) -> Any:
    for token in path:
        if isinstance(node, list):
            node = node[_index(token, len(node))]
        elif isinstance(node, dict):
            node = node[token]
        else:
            raise KeyError(token)
    return node


def _read_or_none(node: Any, path: Sequence[str]) -> Any:
    """Value at the path; a missing last key reads as null, as in the real server's ``test``."""
    parent = _read(node, path[:-1])
    if path and isinstance(parent, dict):
        return parent.get(path[-1])
    return _read(node, path)


Edit = Callable[[Any, str], Any]


def _edit(node: Any, path: Sequence[str], edit: Edit) -> Any:
    """Copy the containers along the path and let ``edit(container, last token)`` make the new last one."""
    if not path:
        return edit({"": node}, "").get("")
    if not isinstance(node, (dict, list)):
        raise KeyError(path[0])
    if len(path) == 1:
        return edit(node, path[0])
    key: Any = _index(path[0], len(node)) if isinstance(node, list) else path[0]
    copy: Any = node.copy()
    copy[key] = _edit(node[key], path[1:], edit)
    return copy


def _adder(value: Any) -> Edit:
    def add(container: Any, token: str) -> Any:
        copy = container.copy()
        if isinstance(copy, list):
            position = len(copy) if token == "-" else _index(token, len(copy) + 1)
            copy.insert(position, value)
        else:
            copy[token] = value
        return copy

    return add


def _replacer(value: Any) -> Edit:
    def replace(container: Any, token: str) -> Any:
        copy = container.copy()
        copy[_index(token, len(copy)) if isinstance(copy, list) else token] = value
        return copy

    return replace


def _remove(container: Any, token: str) -> Any:
    copy = container.copy()
    del copy[_index(token, len(copy)) if isinstance(copy, list) else token]
    return copy


def json_equal(left: Any, right: Any) -> bool:
    """Compare as JSON does: true is not 1."""
    if left is right:
        return True
    kind = type(left)
    if kind is not type(right):
        return kind is not bool and type(right) is not bool and bool(left == right)
    if kind is dict:
        if len(left) != len(right):
            return False
        for key, value in left.items():  # noqa: SIM110 (a loop is twice as fast as all() with a generator)
            if key not in right or not json_equal(value, right[key]):
                return False
        return True
    if kind is list:
        return len(left) == len(right) and all(map(json_equal, left, right))
    return bool(left == right)


# ---- Strategic merge patch


def strategic_merge_patch(obj: Object, patch: Any, type_name: str, lookup: MergeLookup) -> Object:
    """
    Apply a strategic merge patch.

    Maps merge; a list with a merge rule merges by its key (or as a set of scalars), other lists are replaced; null
    deletes. Directives: ``$patch`` (replace, delete, merge), ``$retainKeys``, ``$setElementOrder/F``,
    ``$deleteFromPrimitiveList/F``.

    Args:
        type_name: the type of ``obj``, as ``lookup`` names it.
        lookup: ``(type name, field) -> FieldMerge``.

    Raises:
        BadRequestError: the patch is no map or contradicts itself. (The real server answers 500 to some of these.)
    """
    if not isinstance(patch, dict):
        raise BadRequestError(
            f"error decoding patch: a strategic merge patch must be an object, not {_json_type(patch)}"
        )
    return _Strategic(lookup).merge_map(obj, patch, type_name)


class _Strategic:
    def __init__(self, lookup: MergeLookup) -> None:
        self.lookup = lookup

    def merge_map(self, original: Object, patch: Object, type_name: str) -> Object:
        directive = patch.get(_DIRECTIVE)
        if directive == "replace":
            replaced: Object = _without_directives(patch)
            return replaced
        if directive == "delete":
            return {}
        if directive not in (None, "merge"):
            raise BadRequestError(f"unknown patch type: {directive} in map: {_plain(patch)}")
        merged = _retain_keys(original, patch)
        ordered = self._apply_orders(merged, patch, type_name)
        for key, value in patch.items():
            if key in (_DIRECTIVE, _RETAIN_KEYS) or key in ordered or key.startswith(_ORDER):
                continue
            if key.startswith(_DELETE_PRIMITIVES):
                _delete_primitives(merged, key.removeprefix(_DELETE_PRIMITIVES), value)
            elif value is None:
                merged.pop(key, None)
            else:
                merged[key] = self._merge_value(merged.get(key), value, self.lookup(type_name, key))
        return merged

    def _merge_value(self, old: Any, new: Any, rule: FieldMerge) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return self.merge_map(old, new, rule.type_name)
        if isinstance(old, list) and isinstance(new, list) and rule.merge:
            return self._merge_list(old, new, rule)
        return _without_directives(new)

    def _merge_list(self, old: list[Any], new: list[Any], rule: FieldMerge) -> list[Any]:
        if not any(isinstance(item, dict) for item in (*old, *new)):
            merged = list(old)
            for item in new:
                if item not in merged:
                    merged.append(item)
            return _in_order(merged, new, old, "")
        if not rule.key:
            raise BadRequestError(f"cannot merge lists without merge key for {rule.type_name}")
        kept, changes = _special_elements(old, new, rule.key)
        merged = list(kept)
        for item in changes:
            position = _find(merged, item, rule.key)
            if position < 0:
                merged.append(_without_directives(item))
            else:
                merged[position] = self.merge_map(merged[position], item, rule.type_name)
        return _in_order(merged, changes, kept, rule.key)

    def _apply_orders(self, merged: Object, patch: Object, type_name: str) -> set[str]:
        """Merge the lists that come with an order into ``merged``; return their field names."""
        done = set()
        for directive, order in patch.items():
            if not directive.startswith(_ORDER):
                continue
            field = directive.removeprefix(_ORDER)
            rule = self.lookup(type_name, field)
            old, new = merged.get(field), patch.get(field)
            if not isinstance(order, list) or not all(isinstance(value, list | None) for value in (old, new)):
                raise BadRequestError(f"{directive}: the field and its order must both be lists")
            if new is not None:
                _check_order(new, order, rule.key)
                done.add(field)
            if old is None and new is None:
                continue
            result = old if new is None else self._merge_value(old or [], new, rule)
            result = _delete_listed(result or [], patch.get(_DELETE_PRIMITIVES + field))
            merged[field] = _in_order(result, order, old or [], rule.key)
        return done


def _retain_keys(original: Object, patch: Object) -> Object:
    keys = patch.get(_RETAIN_KEYS)
    if keys is None:
        return dict(original)
    if not isinstance(keys, list):
        raise BadRequestError("$retainKeys must be a list of field names")
    extra = [key for key, value in patch.items() if value is not None and not key.startswith("$") and key not in keys]
    if extra:
        raise BadRequestError(f"$retainKeys does not name {', '.join(extra)}, which the patch sets")
    return {key: value for key, value in original.items() if key in keys}


def _delete_primitives(merged: Object, field: str, unwanted: Any) -> None:
    if isinstance(merged.get(field), list):
        merged[field] = _delete_listed(merged[field], unwanted)


def _delete_listed(items: list[Any], unwanted: Any) -> list[Any]:
    if unwanted is None:
        return items
    if not isinstance(unwanted, list):
        raise BadRequestError("$deleteFromPrimitiveList takes a list")
    return [item for item in items if item not in unwanted]


def _special_elements(old: list[Any], new: list[Any], key: str) -> tuple[list[Any], list[Any]]:
    """Carry out ``$patch`` items of a merging list: what is left of the old items, and the changes to merge into it."""
    changes = []
    replace = False
    for item in new:
        directive = item.get(_DIRECTIVE) if isinstance(item, dict) else None
        if directive == "replace":
            replace = True
        elif directive == "delete":
            wanted = _merge_key(item, key)
            old = [entry for entry in old if _merge_key(entry, key) != wanted]
        elif directive is None:
            _merge_key(item, key)
            changes.append(item)
        else:
            raise BadRequestError(f"unknown patch type: {directive} in map: {_plain(item)}")
    return ([_without_directives(item) for item in changes], []) if replace else (old, changes)


def _merge_key(item: Any, key: str) -> Any:
    if not isinstance(item, dict) or key not in item:
        raise BadRequestError(f"map: {_plain(item)} does not contain declared merge key: {key}")
    return item[key]


def _identity(item: Any, key: str) -> Any:
    return _merge_key(item, key) if key and isinstance(item, dict) else item


def _find(items: Sequence[Any], wanted: Any, key: str) -> int:
    identity = _identity(wanted, key)
    return next((i for i, item in enumerate(items) if _identity(item, key) == identity), -1)


def _in_order(items: list[Any], order: list[Any], server_order: list[Any], key: str) -> list[Any]:
    """
    Order a merged list: items named in ``order`` follow it, the others keep the server's order.

    Where both are known to the server, its order decides who comes first; otherwise what the patch names comes first.
    """
    named = sorted((i for i in items if _find(order, i, key) >= 0), key=lambda item: _find(order, item, key))
    others = [item for item in items if _find(order, item, key) < 0]
    result = []
    while named and others:
        left, right = _find(server_order, others[0], key), _find(server_order, named[0], key)
        result.append((others if 0 <= left < right else named).pop(0))
    return result + named + others


def _check_order(new: list[Any], order: list[Any], key: str) -> None:
    """Items of the patch must appear in the order list, in that order."""
    remaining = iter([_identity(item, key) for item in order])
    for item in new:
        if isinstance(item, dict) and _DIRECTIVE in item:
            continue
        if _identity(item, key) not in remaining:
            raise BadRequestError(
                f"The order in patch list: {_plain(new)} doesn't match $setElementOrder list: {_plain(order)}"
            )


def _without_directives(value: Any) -> Any:
    """A patch value as it stands when there is nothing to merge with: no nulls, no directives."""
    if isinstance(value, dict):
        if value.get(_DIRECTIVE) == "delete":
            return {}
        return {k: _without_directives(v) for k, v in value.items() if v is not None and not _is_directive(k)}
    if isinstance(value, list):
        return [_without_directives(item) for item in value if not (isinstance(item, dict) and _DIRECTIVE in item)]
    return value


def _is_directive(key: str) -> bool:
    return key in (_DIRECTIVE, _RETAIN_KEYS) or key.startswith((_ORDER, _DELETE_PRIMITIVES))


def _plain(value: Any) -> str:
    return str(value)


def _json_type(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
