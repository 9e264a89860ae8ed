"""Lays spec.podTemplate over a pod template, as a strategic merge patch would.

Maps merge, null deletes, lists of named things merge by their key (`MERGE_KEYS`, from the API's own
patchMergeKey), all other lists are replaced. `$patch: delete` removes a list's item,
`$patch: replace` a whole map.
"""

from __future__ import annotations

from quire_operator import names
from quire_operator.errors import OverlayError
from quire_operator.kinds import Manifest

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "claims": "name",
}
PROTECTED = ("command", "args", "ports")
"""Fields of the engine's container that an overlay cannot change."""


def overlay(template: Manifest, patch: Manifest) -> Manifest:
    """The pod template with the user's overlay, our labels, command, arguments and ports kept.

    Raises OverlayError where the overlay is no PodTemplateSpec or removes the engine.
    """
    unknown = sorted(set(patch) - {"metadata", "spec"})
    if unknown:
        raise OverlayError(
            f"spec.podTemplate.{unknown[0]} is unknown; podTemplate has metadata and spec only"
        )
    metadata = patch.get("metadata")
    known = {"labels", "annotations"}
    # What is no map at all is refused by the merge below.
    strange = sorted(set(metadata) - known) if isinstance(metadata, dict) else []
    if strange:
        raise OverlayError(
            f"spec.podTemplate.metadata.{strange[0]} cannot be set; only labels and annotations can"
        )
    merged = _merge(template, patch, "spec.podTemplate")
    if not isinstance(merged, dict):
        raise OverlayError("spec.podTemplate must be a map")
    return _protected(template, merged)


def _protected(template: Manifest, merged: Manifest) -> Manifest:
    ours = template["metadata"]["labels"]
    metadata, spec = merged.get("metadata") or {}, merged.get("spec") or {}
    metadata = {**metadata, "labels": {**(metadata.get("labels") or {}), **ours}}
    containers = spec.get("containers") or []
    if not any(c.get("name") == names.ENGINE_CONTAINER for c in containers):
        raise OverlayError("spec.podTemplate removes the container `engine`, which serves; keep it")
    engine = next(c for c in template["spec"]["containers"] if c["name"] == names.ENGINE_CONTAINER)
    kept = [_restored(c, engine) if c["name"] == engine["name"] else c for c in containers]
    return {"metadata": metadata, "spec": {**spec, "containers": kept}}


def _restored(container: Manifest, engine: Manifest) -> Manifest:
    without = {k: v for k, v in container.items() if k not in PROTECTED}
    return without | {k: engine[k] for k in PROTECTED if k in engine}


def _merge(base: object, patch: object, path: str) -> object:
    if isinstance(patch, dict):
        if patch.get("$patch") == "replace" or base is None:
            return _plain(patch, path)
        if not isinstance(base, dict):
            raise OverlayError(f"{path} must not be a map")
        return _merge_maps(base, patch, path)
    if isinstance(base, dict | list) and not isinstance(patch, type(base)):
        shape = "map" if isinstance(base, dict) else "list"
        raise OverlayError(f"{path} must be a {shape}, got {patch!r}")
    if isinstance(patch, list) and path.rpartition(".")[2] in MERGE_KEYS:
        return _merge_lists(base if isinstance(base, list) else [], patch, path)
    return patch


def _plain(patch: object, path: str) -> object:
    """A patch that lies over nothing: without directives and nulls."""
    return _merge_maps({}, patch, path) if isinstance(patch, dict) else patch


def _merge_maps(base: Manifest, patch: Manifest, path: str) -> Manifest:
    merged = dict(base)
    for key, value in patch.items():
        if key == "$patch":
            continue
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(base.get(key), value, f"{path}.{key}")
    return merged


def _merge_lists(base: list[object], patch: list[object], path: str) -> list[object]:
    key = MERGE_KEYS[path.rpartition(".")[2]]
    merged = list(base)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise OverlayError(f"every item of {path} needs its {key!r}, got {item!r}")
        at = [
            i
            for i, have in enumerate(merged)
            if isinstance(have, dict) and have.get(key) == item[key]
        ]
        if item.get("$patch") == "delete":
            merged = [have for i, have in enumerate(merged) if i not in at]
        elif at:
            merged[at[0]] = _merge(merged[at[0]], item, f"{path}[{item[key]}]")
        else:
            merged.append(_plain(item, f"{path}[{item[key]}]"))
    return merged
