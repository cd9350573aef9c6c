"""
Server-side apply and managedFields.

- ``server_side_apply(current, applied, *, manager, force, schema, subresource="", now) -> Object``: the merged object
  with its ``metadata.managedFields``; ``current`` itself (same object) when nothing changes; ``current`` None creates.
  Give it ``written_part(applied, subresource, has_status=...)``, since an endpoint ignores ``status`` or all but it.
  Raises ConflictError (causes ``FieldManagerConflict``) and BadRequestError (unknown field, wrong type, duplicates).
- ``track_update(old, new, *, manager, schema, subresource="", now) -> Object``: ``new`` with managedFields that record
  what a create (``old`` None) or update changed.
- ``merge_configuration(live, config, schema) -> Object``: the merge alone, for admission policies.
- ``written_part(applied, subresource, *, has_status) -> Object``.

``schema`` is ``CompiledSchema.schema``, ``now`` an RFC 3339 text. Nothing is mutated; unchanged parts are shared.

Fields are held as trees in the form of FieldsV1 (``f:name``, ``k:{"name":"a"}``, ``v:"x"``), but with "." wherever the
path itself is a member. Source: sigs.k8s.io/structured-merge-diff (merge, prune and ownership rules); recorded answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from shallop.embedded.apiserver.schema import MISSING, Schema
from shallop.errors import BadRequestError, ConflictError
from shallop.kube.objects import Object
from shallop.kube.patch import json_equal

Tree = dict[str, Any]

_MEMBER = "."
_LEAF: Tree = {_MEMBER: {}}
# FieldsV1 of a leaf: one for all, as most of a tree are leaves.
_NONE: Tree = {}
_UNTYPED = Schema()
# Set by the server: owned by nobody.
_SERVER_NAMES = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "selfLink",
    "managedFields",
)
_SERVER_METADATA: Tree = {f"f:{name}": {_MEMBER: {}} for name in _SERVER_NAMES}
_SERVER_FIELDS: Tree = {
    "f:metadata": {**_SERVER_METADATA, _MEMBER: {}},
    "f:apiVersion": {_MEMBER: {}},
    "f:kind": {_MEMBER: {}},
}


class _Manager(NamedTuple):
    """Who owns fields: entries of one manager differ by operation, subresource and (for updates) version."""

    name: str
    operation: str
    api_version: str
    subresource: str

    def __str__(self) -> str:
        text = json.dumps(self.name)
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        return f"{text} using {self.api_version}" if self.operation == "Update" else text


class _Owned:
    """
    What a manager owns.

    Most writes touch few managers, so an entry of managedFields is read when first needed, and goes on as it is while
    it says the truth.
    """

    __slots__ = ("_fields", "api_version", "entry", "time")

    def __init__(self, fields: Tree | None, api_version: str, time: str, entry: Object | None = None) -> None:
        """Without ``fields`` they are those of ``entry``."""
        self._fields = fields
        self.api_version = api_version
        self.time = time
        self.entry = entry

    @property
    def fields(self) -> Tree:
        if self._fields is None:
            self._fields = _decode((self.entry or {}).get("fieldsV1") or {})
        return self._fields

    def __bool__(self) -> bool:
        return bool(self._fields if self.entry is None else self.entry.get("fieldsV1"))

    def touches(self, tree: Tree) -> bool:
        """Whether it may have anything in common with ``tree``: the outermost fields tell most apart."""
        own = self._fields if self.entry is None else self.entry.get("fieldsV1")
        return not tree.keys().isdisjoint(own or ())

    def with_fields(self, fields: Tree) -> _Owned:
        return self if fields is self.fields else _Owned(fields, self.api_version, self.time)

    def at(self, time: str) -> _Owned:
        entry = {**self.entry, "time": time} if self.entry is not None and self.time else None
        return _Owned(self.fields, self.api_version, time, entry)


_Managers = dict[_Manager, _Owned]


# ---- Trees of fields


def _union(left: Tree, right: Tree) -> Tree:
    """Members of either; ``left`` itself when it has them all."""
    if not right or left is right:
        return left
    if not left:
        return right
    result = left
    for key, child in right.items():
        known = left.get(key)
        both = child if known is None else _union(known, child)
        if both is not known:
            result = dict(left) if result is left else result
            result[key] = both
    return result


def _difference(left: Tree, right: Tree) -> Tree:
    """Members of ``left`` that are not members of ``right``; ``left`` itself when these are all."""
    if not right:
        return left
    result = left
    for key, child in left.items():
        if key not in right:
            continue
        rest = {} if key == _MEMBER else _difference(child, right[key])
        if key != _MEMBER and rest is child:
            continue
        result = dict(left) if result is left else result
        if rest:
            result[key] = rest
        else:
            del result[key]
    return result


def _intersection(left: Tree, right: Tree) -> Tree:
    result: Tree = {}
    for key, child in left.items():
        if key in right:
            common = {} if key == _MEMBER else _intersection(child, right[key])
            if common or key == _MEMBER:
                result[key] = common
    return result


def _paths(tree: Tree, prefix: str = "") -> list[str]:
    result = [prefix] if _MEMBER in tree else []
    for key, child in sorted(tree.items()):
        if key != _MEMBER:
            result += _paths(child, prefix + _shown(key))
    return result


def _shown(element: str) -> str:
    kind, _, text = element.partition(":")
    if kind == "f":
        return f".{text}"
    if kind == "v":
        return f"[={text}]"
    return f"[{','.join(f'{key}={_compact(value)}' for key, value in json.loads(text).items())}]"


_encode_json = msgspec.json.Encoder().encode
_compact = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode
_quoted = json.encoder.encode_basestring
_quoted_name = lru_cache(maxsize=100)(_quoted)


def _encode(tree: Tree) -> Tree:
    """To FieldsV1: a member without children is just ``{}``."""
    if len(tree) == 1 and _MEMBER in tree:
        return {}
    return {key: {} if key == _MEMBER or child is _LEAF else _encode(child) for key, child in tree.items()}


def _decode(fields: Mapping[str, Any]) -> Tree:
    return {key: {} if key == _MEMBER else _decode(child) if child else _LEAF for key, child in fields.items()}


# ---- Reading values by schema


def _child(schema: Schema, key: str) -> Schema | None:
    """Schema of a field; None where it is not declared."""
    found = schema.properties.get(key) or schema.additional
    if found is None and (schema.preserve or schema.type == ""):
        return _UNTYPED
    return found


def _is_granular_map(schema: Schema, value: Any) -> bool:
    return isinstance(value, dict) and schema.list_type != "atomic"


def _is_granular_list(schema: Schema, value: Any) -> bool:
    return isinstance(value, list) and schema.list_type in ("set", "map")


def _element(schema: Schema, item: Any) -> str:
    """Path element of an item of a set or map list."""
    if schema.list_type == "set":
        return f"v:{_compact(item)}"
    if len(schema.keys) == 1 and isinstance(item, dict):
        # As nearly all lists are.
        name = schema.keys[0]
        if type(value := item.get(name)) is str:
            return f"k:{{{_quoted_name(name)}:{_quoted(value)}}}"
    return f"k:{_compact({key: _key_value(schema, item, key) for key in schema.keys})}"


def _key_value(schema: Schema, item: Any, key: str) -> Any:
    if isinstance(item, dict) and key in item:
        return item[key]
    declared = schema.items.properties.get(key) if schema.items else None
    if declared is not None and declared.default is not MISSING:
        return declared.default
    # The only default among the merge keys of built-in types.
    return "TCP" if key == "protocol" else None


def _items(schema: Schema, items: list[Any]) -> dict[str, Any]:
    """Items by path element; of duplicates the first."""
    result: dict[str, Any] = {}
    for item in items:
        result.setdefault(_element(schema, item), item)
    return result


_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int, float),
    "number": (int, float),
}


def _fields_of(value: Any, schema: Schema, path: str) -> Tree:
    """
    The fields that applying ``value`` owns.

    Raises:
        BadRequestError: an undeclared field, a wrong type, duplicate or incomplete list entries.
    """
    wanted = _TYPES.get("" if schema.int_or_string else schema.type)
    if value is not None and wanted and (not isinstance(value, wanted) or (type(value) is bool and bool not in wanted)):
        raise BadRequestError(f"{path}: expected {schema.type}, got {_compact(value)}")
    if _is_granular_map(schema, value):
        return _fields_of_map(value, schema, path)
    if _is_granular_list(schema, value):
        return _fields_of_list(value, schema, path)
    return _LEAF


def _fields_of_map(value: Object, schema: Schema, path: str) -> Tree:
    result: Tree = {}
    for key, item in value.items():
        child = _child(schema, key)
        if child is None:
            raise BadRequestError(f"{path}.{key}: field not declared in schema")
        fields = _fields_of(item, child, f"{path}.{key}")
        if item is None or item == {} or key not in schema.properties:
            fields = {**fields, _MEMBER: {}}
        if fields:
            result[f"f:{key}"] = fields
    return result


def _fields_of_list(value: list[Any], schema: Schema, path: str) -> Tree:
    result: Tree = {}
    items = schema.items or _UNTYPED
    for item in value:
        missing = [key for key in schema.keys if _key_value(schema, item, key) is None]
        if missing:
            raise BadRequestError(f'{path}: an element of the list omits its key field "{missing[0]}"')
        element = _element(schema, item)
        if element in result:
            raise BadRequestError(f"{path}: duplicate entries for key {_shown(element)}")
        result[element] = {**_fields_of(item, items, path + _shown(element)), _MEMBER: {}}
    return result


# ---- Comparing


class _Changes(NamedTuple):
    added: Tree
    modified: Tree
    removed: Tree


_NOTHING = _Changes({}, {}, {})


def _compare(old: Any, new: Any, schema: Schema) -> _Changes:
    """What an update from ``old`` to ``new`` adds, modifies and removes; either may be MISSING."""
    if old is new or (type(old) is dict and old == new and _encode_json(old) == _encode_json(new)):
        # Equality in C first; the JSON tells 1 from true.
        return _NOTHING
    if old is MISSING:
        return _Changes(_everything(new, schema), {}, {})
    if new is MISSING:
        return _Changes({}, {}, _everything(old, schema))
    added: Tree = {}
    modified: Tree = {}
    removed: Tree = {}
    granular = False
    for old_part, new_part, key, child in _parts(old, new, schema):
        granular = True
        if old_part is new_part:
            continue
        changes = _compare(old_part, new_part, child)
        for tree, part in ((added, changes.added), (modified, changes.modified), (removed, changes.removed)):
            if part:
                tree[key] = part
    if not granular and not json_equal(old, new):
        modified[_MEMBER] = {}
    return _Changes(added, modified, removed)


def _everything(value: Any, schema: Schema) -> Tree:
    """All paths of a value that comes or goes as a whole."""
    if type(value) is dict and value and schema.list_type != "atomic":
        tree = {f"f:{key}": _everything(item, _child(schema, key) or _UNTYPED) for key, item in value.items()}
    elif _is_granular_list(schema, value) and value:
        items = schema.items or _UNTYPED
        tree = {key: _everything(item, items) for key, item in _items(schema, value).items()}
    else:
        return _LEAF
    tree[_MEMBER] = {}
    return tree


def _parts(old: Any, new: Any, schema: Schema) -> list[tuple[Any, Any, str, Schema]]:
    """Parts of two granular values side by side; nothing for leaves and for empty maps."""
    some = new if old is MISSING or old is None else old
    if _is_granular_map(schema, some):
        left = old if isinstance(old, dict) else {}
        right = new if isinstance(new, dict) else {}
        return [
            (left.get(key, MISSING), right.get(key, MISSING), f"f:{key}", _child(schema, key) or _UNTYPED)
            for key in (left | right)
        ]
    if _is_granular_list(schema, some):
        first = _items(schema, old) if isinstance(old, list) else {}
        second = _items(schema, new) if isinstance(new, list) else {}
        items = schema.items or _UNTYPED
        return [(first.get(key, MISSING), second.get(key, MISSING), key, items) for key in (first | second)]
    return []


# ---- Merging


def _merge(live: Any, applied: Any, schema: Schema) -> Any:
    """Lay ``applied`` over ``live``; ``live`` itself when that changes nothing."""
    if live is MISSING or live is None:
        return applied
    if _is_granular_map(schema, applied) and isinstance(live, dict):
        return _merge_maps(live, applied, schema)
    if _is_granular_list(schema, applied) and isinstance(live, list):
        merged = _merge_lists(live, applied, schema)
        same = len(merged) == len(live) and all(new is old for new, old in zip(merged, live, strict=True))
        return live if same else merged
    return live if json_equal(live, applied) else applied


def _merge_maps(live: Object, applied: Object, schema: Schema) -> Object:
    result = live
    for key, value in applied.items():
        old = live.get(key, MISSING)
        new = _merge(old, value, _child(schema, key) or _UNTYPED)
        if new is not old:
            result = dict(live) if result is live else result
            result[key] = new
    return result


def _merge_lists(live: list[Any], applied: list[Any], schema: Schema) -> list[Any]:
    """Keep the order of both lists as far as they agree; where they do not, the applied one wins."""
    left, right = _items(schema, live), _items(schema, applied)
    items = schema.items or _UNTYPED
    shared = [key for key in right if key in left]
    left_keys, right_keys = list(left), list(right)
    result: list[Any] = []
    done: set[str] = set()

    def take(key: str) -> None:
        done.add(key)
        result.append(_merge(left.get(key, MISSING), right[key], items))
        if shared and shared[0] == key:
            shared.pop(0)

    while left_keys or right_keys:
        if left_keys and right_keys:
            if left_keys[0] == right_keys[0]:
                take(left_keys.pop(0))
                right_keys.pop(0)
                continue
            if left_keys[0] in right and shared and shared[0] != left_keys[0]:
                left_keys.pop(0)
                continue
        if left_keys:
            if left_keys[0] not in right:
                result.append(left[left_keys.pop(0)])
                continue
            if left_keys[0] in done:
                left_keys.pop(0)
        if right_keys:
            take(right_keys.pop(0))
    return result


def _prune(value: Any, schema: Schema, last: Tree, owned: Tree, *, top: bool = False) -> Any:
    """
    Remove what the manager applied before (``last``) and nobody owns now (``owned``).

    A declared field counts as a member of a tree as soon as something below it is one.
    """
    if _is_granular_map(schema, value):
        result = dict(value)
        for key, item in value.items():
            element = f"f:{key}"
            if element not in last or (top and key in ("apiVersion", "kind", "metadata") and element not in owned):
                continue
            before, now = last[element], owned.get(element, {})
            declared = key in schema.properties
            if _is_member(before, declared) and not _is_member(now, declared):
                del result[key]
            else:
                result[key] = _prune(item, _child(schema, key) or _UNTYPED, before, now)
        return result
    if _is_granular_list(schema, value):
        kept = []
        for item in value:
            element = _element(schema, item)
            before, now = last.get(element, {}), owned.get(element, {})
            if _MEMBER in before and not now:
                continue
            kept.append(_prune(item, schema.items or _UNTYPED, before, now) if before else item)
        return kept
    return value


def _is_member(tree: Tree, declared: bool) -> bool:
    return bool(tree) if declared else _MEMBER in tree


# ---- managedFields


def _read_managers(obj: Object | None, *, ours: bool = True) -> _Managers:
    """Read managedFields; those that are not ``ours``, but a client's, are written anew in our order."""
    managers: _Managers = {}
    for entry in ((obj or {}).get("metadata") or {}).get("managedFields") or ():
        if not entry.get("manager") and not entry.get("fieldsV1"):
            continue
        operation, version = entry.get("operation", "Update"), entry.get("apiVersion", "")
        shown_version = version if operation == "Update" else ""
        key = _Manager(entry.get("manager", ""), operation, shown_version, entry.get("subresource", ""))
        time = entry.get("time") or ""
        fields = None if ours else _decode(entry.get("fieldsV1") or {})
        managers[key] = _Owned(fields, version, time, entry if ours else None)
    return managers


def _with_managers(obj: Object, managers: _Managers) -> Object:
    entries = []
    order = sorted(managers.items(), key=lambda pair: (pair[0].operation, pair[1].time, pair[0]))
    for manager, owned in order:
        if owned.entry is not None and owned:
            entries.append(owned.entry)
            continue
        fields = _difference(owned.fields, _SERVER_FIELDS)
        if not fields and manager.operation == "Update":
            continue
        entry: dict[str, Any] = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": owned.api_version,
        }
        if owned.time:
            entry["time"] = owned.time
        entry |= {"fieldsType": "FieldsV1", "fieldsV1": _encode(fields)}
        if manager.subresource:
            entry["subresource"] = manager.subresource
        entries.append(entry)
    metadata = {key: value for key, value in obj.get("metadata", {}).items() if key != "managedFields"}
    if entries:
        metadata["managedFields"] = entries
    return {**obj, "metadata": metadata}


def _without_managed_fields(obj: Object) -> Object:
    metadata = obj.get("metadata") or {}
    if "managedFields" not in metadata:
        return obj
    return {**obj, "metadata": {key: value for key, value in metadata.items() if key != "managedFields"}}


def _disown(managers: _Managers, actor: _Manager, changes: _Changes) -> _Managers:
    """Take changed and removed fields away from everyone but ``actor``; who owns nothing any more is forgotten."""
    lost = _union(_union(changes.added, changes.modified), changes.removed)
    result: _Managers = {}
    for manager, owned in managers.items():
        if manager != actor and owned.touches(lost):
            owned = owned.with_fields(_difference(owned.fields, lost))
        if owned or manager == actor:
            result[manager] = owned
    return result


def _conflict(conflicts: Mapping[_Manager, Tree]) -> ConflictError:
    causes = []
    texts = []
    for manager, tree in sorted(conflicts.items()):
        paths = _paths(tree)
        texts.append((manager, paths))
        causes += [
            {"reason": "FieldManagerConflict", "message": f"conflict with {manager}", "field": path} for path in paths
        ]
    if len(causes) == 1:
        summary = f"Apply failed with 1 conflict: conflict with {texts[0][0]}: {causes[0]['field']}"
    else:
        lines = "\n".join(
            f"conflicts with {manager}:\n" + "\n".join(f"- {path}" for path in paths) for manager, paths in texts
        )
        summary = f"Apply failed with {len(causes)} conflicts: {lines}"
    return ConflictError(summary, details={"causes": causes})


def written_part(applied: Object, subresource: str, *, has_status: bool) -> Object:
    """What an endpoint writes of an applied object: all but ``status``, or ``status`` alone."""
    if subresource:
        kept = {key: value for key, value in applied.items() if key in ("apiVersion", "kind", subresource)}
        names = {k: v for k, v in (applied.get("metadata") or {}).items() if k in ("name", "namespace")}
        return {**kept, "metadata": names}
    return {key: value for key, value in applied.items() if key != "status" or not has_status}


def server_side_apply(
    current: Object | None,
    applied: Object,
    *,
    manager: str,
    force: bool,
    schema: Schema,
    subresource: str = "",
    now: str,
) -> Object:
    """
    Merge an applied object into the current one, and record who owns which field.

    Fields that this manager applied before, applies no longer and that nobody else owns are removed.

    Raises:
        ConflictError: another manager owns a field to which ``applied`` gives another value, and ``force`` is not set.
        BadRequestError: ``applied`` does not fit the schema.
    """
    metadata = applied.get("metadata") or {}
    if metadata.get("managedFields"):
        raise BadRequestError("metadata.managedFields must be nil")
    version = applied["apiVersion"]
    try:
        fields = _fields_of(applied, schema, "")
    except BadRequestError as error:
        where = f"({metadata.get('namespace', '')}/{metadata.get('name', '')}; {version}, Kind={applied['kind']})"
        raise BadRequestError(f"failed to create typed patch object {where}: {error.message}") from error
    actor = _Manager(manager, "Apply", "", subresource)
    if current is None:
        return _with_managers(applied, {actor: _Owned(fields, version, now)})
    live = _without_managed_fields(current)
    managers = _read_managers(current) or _owners_before_first_apply(live, schema)
    last = managers.get(actor)
    # The server's own fields cannot be changed by applying them; preconditions are checked before.
    merged = _merge(live, _without_server_fields(applied), schema)
    owned = {**managers, actor: _Owned(fields, version, last.time if last else "")}
    same_fields = last is not None and last.fields == _difference(fields, _SERVER_FIELDS)
    if last is not None and same_fields and merged is live and last.api_version == version:
        return current
    if last is not None and not same_fields:
        everyone: Tree = {}
        for each in owned.values():
            everyone = _union(everyone, each.fields)
        pruned = _prune(merged, schema, last.fields, everyone, top=True)
        merged = merged if json_equal(pruned, merged) else pruned
    changes = _compare(live, merged, schema)
    if not force:
        changed = _union(changes.added, changes.modified)
        conflicts = {each: _intersection(held.fields, changed) for each, held in owned.items() if each != actor}
        conflicts = {each: tree for each, tree in conflicts.items() if tree}
        if conflicts:
            raise _conflict(conflicts)
    owned = _disown(owned, actor, changes)
    if merged is not live:
        owned[actor] = owned[actor].at(now)
    result = _with_managers(merged, owned)
    return current if merged is live and _same_managers(result, current) else result


def merge_configuration(live: Object, config: Object, schema: Schema) -> Object:
    """
    Lay a configuration over an object as an apply does, without owners.

    Raises:
        BadRequestError: it does not fit the schema, or would change an atomic list, map or struct in part.
    """
    _fields_of(config, schema, "")
    if atomics := list(_atomics(config, schema, "")):
        raise BadRequestError(
            f"invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {', '.join(atomics)}"
        )
    merged: Object = _merge(live, config, schema)
    return merged


def _atomics(value: Any, schema: Schema, path: str) -> Iterator[str]:
    """Paths of what only can be given as a whole."""
    if _is_granular_map(schema, value):
        for key, item in value.items():
            yield from _atomics(item, _child(schema, key) or _UNTYPED, f"{path}.{key}")
    elif _is_granular_list(schema, value):
        for item in value:
            yield from _atomics(item, schema.items or _UNTYPED, path + _shown(_element(schema, item)))
    elif isinstance(value, dict | list):
        yield path


def _same_managers(new: Object, old: Object) -> bool:
    return json_equal(new["metadata"].get("managedFields"), old["metadata"].get("managedFields"))


def _without_server_fields(applied: Object) -> Object:
    metadata = {key: value for key, value in (applied.get("metadata") or {}).items() if key not in _SERVER_NAMES}
    return {**applied, "metadata": metadata}


def _owners_before_first_apply(live: Object, schema: Schema) -> _Managers:
    """Everything that was there before anyone was recorded belongs to a manager of its own."""
    changes = _compare({}, live, schema)
    version = live["apiVersion"]
    return {_Manager("before-first-apply", "Update", version, ""): _Owned(changes.added, version, "")}


def track_update(
    old: Object | None, new: Object, *, manager: str, schema: Schema, subresource: str = "", now: str
) -> Object:
    """
    Record what a create or an update wrote.

    managedFields of one empty entry in ``new`` forget all owners; absent or empty ones keep those of ``old``. An object
    without owners gets none by an update.
    """
    given = (new.get("metadata") or {}).get("managedFields")
    if old is not None and given == old["metadata"].get("managedFields"):
        # Who sends back what was read, as every patch does, says nothing about owners.
        given = None
    if given == [{}]:
        return _without_managed_fields(new)
    if old is None and not given:
        return _with_creator(new, _Manager(manager, "Update", new["apiVersion"], subresource), schema, now)
    managers = _read_managers(new, ours=False) if given else _read_managers(old)
    if old is not None and not managers:
        return _without_managed_fields(new)
    version = new["apiVersion"]
    plain = _without_managed_fields(new)
    if old is not None and not given:
        writer = _Manager(manager, "Update", version, subresource)
        if (entry := _first_entry(old, new, managers, writer, schema, now)) is not None:
            owners = {each: owned for each, owned in managers.items() if owned}
            return _with_managers(plain, {**owners, writer: _Owned(None, version, now, entry)})
    base = _empty_structs(plain, schema) if old is None else _without_managed_fields(old)
    changes = _compare(base, plain, schema)
    actor = _Manager(manager, "Update", version, subresource)
    # Whoever wrote by an update before and writes again has one entry with both.
    previous = managers.get(actor)
    managers = _disown(managers, actor, changes)
    taken = _difference(_union(changes.added, changes.modified), _SERVER_FIELDS)
    if previous is not None:
        managers[actor] = previous.with_fields(_difference(previous.fields, changes.removed))
    if taken:
        held = managers.get(actor)
        managers[actor] = held.with_fields(_union(held.fields, taken)).at(now) if held else _Owned(taken, version, now)
    return _with_managers(plain, managers)


def _first_entry(
    old: Object, new: Object, managers: _Managers, writer: _Manager, schema: Schema, now: str
) -> Object | None:
    """
    Return the entry of who writes for the first time what nobody wrote before, as the status of a new object.

    None = somebody loses something by the write, or nothing is written: that takes more than looking at what is new.
    """
    if writer in managers or old["metadata"] != new["metadata"]:
        return None
    fields: Tree = {}
    for key in old | new:
        if key == "metadata":
            continue
        element = f"f:{key}"
        before, after = old.get(key, MISSING), new.get(key, MISSING)
        if before is after or element in _SERVER_FIELDS:
            continue
        part = _taken(before, after, _child(schema, key) or _UNTYPED)
        if part is None and after is not MISSING and json_equal(before, after):
            continue
        if any(element in (owned.entry or {}).get("fieldsV1", ()) for owned in managers.values()):
            return None
        if part is not None:
            fields[element] = part
    return _new_entry(writer, fields, now) if fields else None


def _taken(old: Any, new: Any, schema: Schema) -> Tree | None:
    """``_encode`` of what ``_compare`` finds added or modified; None when that is nothing."""
    if old is new or new is MISSING:
        return None
    if old is MISSING:
        return _everything_encoded(new, schema)
    kind = type(new)
    if kind is not type(old) or (kind is not dict and kind is not list):
        return _taken_parts(_parts(old, new, schema), old, new)
    if kind is dict:
        if old == new and _encode_json(old) == _encode_json(new):
            return None
        if schema.list_type == "atomic" or not (old or new):
            return None if json_equal(old, new) else _NONE
        tree: Tree = {}
        for key, item in new.items():
            before = old.get(key, MISSING)
            if before is not item:
                part = _taken(before, item, schema.properties.get(key) or _child(schema, key) or _UNTYPED)
                if part is not None:
                    tree[f"f:{key}"] = part
        return tree or None
    if schema.list_type not in ("set", "map"):
        return None if json_equal(old, new) else _NONE
    known, items, tree = _items(schema, old), schema.items or _UNTYPED, {}
    for element, item in _items(schema, new).items():
        part = _taken(known.get(element, MISSING), item, items)
        if part is not None:
            tree[element] = part
    return tree or None


def _taken_parts(parts: list[tuple[Any, Any, str, Schema]], old: Any, new: Any) -> Tree | None:
    if not parts:
        return None if json_equal(old, new) else _NONE
    tree: Tree = {}
    for before, after, key, child in parts:
        part = _taken(before, after, child)
        if part is not None:
            tree[key] = part
    return tree or None


def _new_entry(writer: _Manager, fields: Tree, now: str) -> Object:
    entry: Object = {
        "manager": writer.name,
        "operation": writer.operation,
        "apiVersion": writer.api_version,
        "time": now,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    return {**entry, "subresource": writer.subresource} if writer.subresource else entry


def _with_creator(new: Object, creator: _Manager, schema: Schema, now: str) -> Object:
    """What ``track_update`` returns where nobody owned anything before, at a third of its price."""
    given = {key: item for key, item in new.items() if key not in ("apiVersion", "kind")}
    given["metadata"] = {key: item for key, item in new["metadata"].items() if key not in _SERVER_NAMES}
    fields = _created(given, schema, _STRUCTS if schema.type_name else _PLAIN_STRUCTS)
    if not fields:
        return _without_managed_fields(new)
    entry = _new_entry(creator, fields, now)
    return {**new, "metadata": {**new["metadata"], "managedFields": [entry]}}


def _created(value: Object, schema: Schema, structs: Mapping[str, Any]) -> Tree:
    """All paths of a new object, as FieldsV1 has them; ``structs`` were always there, only what they hold is new."""
    tree: Tree = {}
    properties = schema.properties
    for key, item in value.items():
        kind = type(item)
        if kind is not dict and kind is not list:
            tree[f"f:{key}"] = _NONE
            continue
        child = properties.get(key) or _child(schema, key) or _UNTYPED
        inner = structs.get(key)
        if inner is None or kind is not dict:
            tree[f"f:{key}"] = _everything_encoded(item, child)
        elif part := _created(item, child, inner):
            tree[f"f:{key}"] = part
    return tree


def _everything_encoded(value: Any, schema: Schema) -> Tree:
    """``_encode`` of ``_everything``."""
    kind = type(value)
    if not value or (kind is not dict and kind is not list) or schema.list_type == "atomic":
        return _NONE
    if kind is dict:
        for item in value.values():
            kind = type(item)
            if kind is dict or kind is list:
                break
        else:
            return _leaves(tuple(value))
        tree: Tree = {}
        properties = schema.properties
        for key, item in value.items():
            kind = type(item)
            if kind is not dict and kind is not list:
                tree[f"f:{key}"] = _NONE
            else:
                child = properties.get(key) or _child(schema, key) or _UNTYPED
                tree[f"f:{key}"] = _everything_encoded(item, child)
    elif schema.list_type in ("set", "map"):
        items = schema.items or _UNTYPED
        tree = {}
        for item in value:
            element = _element(schema, item)
            if element not in tree:
                tree[element] = _everything_encoded(item, items)
    else:
        return _NONE
    tree[_MEMBER] = _NONE
    return tree


@lru_cache(maxsize=1000)
def _leaves(names: tuple[str, ...]) -> Tree:
    """``_encode`` of a map that holds nothing but leaves; the same few come again and again."""
    return {**{f"f:{name}": _NONE for name in names}, _MEMBER: _NONE}


# Structs that a typed object of the real server always has, so that they are never "added".
_STRUCTS: Mapping[str, Any] = {
    "metadata": {},
    "spec": {"strategy": {}, "updateStrategy": {}, "template": {"metadata": {}, "spec": {}}},
    "status": {},
}
_PLAIN_STRUCTS: Mapping[str, Any] = {"metadata": {}}


def _empty_structs(obj: Object, schema: Schema) -> Object:
    return _only_present(_STRUCTS if schema.type_name else _PLAIN_STRUCTS, obj)


def _only_present(structs: Mapping[str, Any], obj: Any) -> Object:
    return {
        key: _only_present(inner, obj[key])
        for key, inner in structs.items()
        if isinstance(obj, dict) and isinstance(obj.get(key), dict)
    }
