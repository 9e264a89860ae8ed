"""Fields of objects as `testing.FakeCluster` merges them: paths of leaves, lists by their keys."""

from __future__ import annotations

from typing import Any, TypeVar

from quire_operator.errors import Conflict
from quire_operator.kinds import Manifest

Path = tuple[str, ...]
Json = TypeVar("Json")

LIST_KEYS = {
    "ownerReferences": "uid",
    "conditions": "type",
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
"""Lists whose items have owners of their own; all others are owned whole."""


def copied(value: Json) -> Json:
    """A copy of JSON, without the books that `copy.deepcopy` keeps for objects of any kind: it took
    a good part of the tests' time."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}  # type: ignore[return-value]
    if isinstance(value, list):
        return [copied(part) for part in value]  # type: ignore[return-value]
    return value


def leaves(value: Any, path: Path = ()) -> list[Path]:
    """Paths of what an apply owns: items of keyed lists as "name=x", other lists whole."""
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in leaves(v, (*path, k))]
    if isinstance(value, list) and path and path[-1] in LIST_KEYS:
        key = LIST_KEYS[path[-1]]
        return [leaf for v in value for leaf in leaves(v, (*path, f"{key}={v[key]}"))]
    return [path]


def _step(value: Any, part: str) -> Any:
    if isinstance(value, list):
        key, _, wanted = part.partition("=")
        return next((item for item in value if str(item.get(key)) == wanted), None)
    return value.get(part) if isinstance(value, dict) else None


def value_at(value: Any, path: Path) -> Any:
    """None where the path leads nowhere."""
    for part in path:
        value = _step(value, part)
    return value


def set_at(body: Any, path: Path, new: Any) -> None:
    """Sets one leaf, and makes the maps and lists on the way to it."""
    for i, part in enumerate(path[:-1]):
        below = _step(body, part)
        if below is None:
            below = [] if part in LIST_KEYS and "=" in path[i + 1] else {}
            if isinstance(body, list):
                key, _, wanted = part.partition("=")
                below = {key: wanted}
                body.append(below)
            else:
                body[part] = below
        body = below
    body[path[-1]] = copied(new)


def take_back(body: Any, path: Path) -> None:
    """Takes one leaf out. An item of a list keeps its key, by which it is found, to the last."""
    holder, above = value_at(body, path[:-1]), value_at(body, path[:-2])
    if not isinstance(holder, dict):
        return
    key = path[-2].partition("=")[0] if isinstance(above, list) else None
    if path[-1] != key:
        holder.pop(path[-1], None)
    if key is not None and set(holder) <= {key}:
        above[:] = [item for item in above if item is not holder]


def merge_patch(body: Manifest, patch: Manifest, *, strategic: bool) -> None:
    """A merge patch in place; a strategic one may delete items of keyed lists, nothing else."""
    for key, value in patch.items():
        if value is None:
            body.pop(key, None)
        elif isinstance(value, dict):
            below = body.setdefault(key, {})
            merge_patch(below, value, strategic=strategic)
        elif strategic and key in LIST_KEYS:
            gone = {item[LIST_KEYS[key]] for item in value if item.get("$patch") == "delete"}
            body[key] = [item for item in body.get(key, []) if item[LIST_KEYS[key]] not in gone]
        else:
            body[key] = copied(value)


def settle_conflicts(
    body: Manifest,
    owners: dict[str, set[Path]],
    owner: str,
    manifest: Manifest,
    mine: set[Path],
    *,
    force: bool,
) -> None:
    """Takes from the others what the owner would change. Raises Conflict without `force`."""
    for who, paths in owners.items():
        if who == owner:
            continue
        taken = {p for p in mine & paths if value_at(body, p) != value_at(manifest, p)}
        if taken and not force:
            raise Conflict(409, "apply", f"{sorted(taken)[0]} is owned by {who}", "Conflict")
        owners[who] = paths - taken


def is_selected(body: Manifest, labels: str, fields: str) -> bool:
    """Whether a label selector ("a", "a=b") and a field selector ("a.b=c", "a.b!=c") take it."""
    have = body["metadata"].get("labels") or {}
    wanted = (pair.partition("=") for pair in labels.split(",") if pair)
    if not all(k in have and (not equal or have[k] == v) for k, equal, v in wanted):
        return False
    return all(_is_so(body, *pair.split("=")) for pair in fields.split(",") if pair)


def _is_so(body: Manifest, field: str, value: str) -> bool:
    """`field` ends with "!" where it is to be another."""
    has = value_at(body, tuple(field.removesuffix("!").split("."))) == value
    return has is not field.endswith("!")
