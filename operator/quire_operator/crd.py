"""Writes the CustomResourceDefinition from `api/`'s types: `python -m quire_operator.crd`.

The schema is structural (no references, no unions but int-or-string), every field described,
defaults set where the types have them, those of optional objects written out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import inspect

from quire_operator import api
from quire_operator.api.parts import validations

MAX_BYTES = 256 * 1024
"""Above it `kubectl apply` (client side) cannot keep the object in its annotation."""

HEADER = "# Written by `python -m quire_operator.crd` from operator/quire_operator/api/.\n"
FILE_NAME = f"{api.GROUP}_{api.PLURAL}.yaml"
FOLDERS = ("crds", "charts/quire/files")
"""Below the repository's root. A chart can only read files of its own folder."""

Schema = dict[str, Any]

NAME_RULE = (
    f"size(self.metadata.name) <= {api.MAX_NAME_LEN}"
    " && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
)
NAME_MESSAGE = (
    f"metadata.name must be a DNS label (a-z, 0-9 and '-', beginning with a letter) of at most "
    f"{api.MAX_NAME_LEN} characters, as a Service and pods are named after it"
)
ADAPTER_RULE = (
    "!has(self.spec.model.adapters) || has(self.spec.model.servedName)"
    " || self.spec.model.adapters.all(a, a.name != self.metadata.name)"
)
ADAPTER_MESSAGE = (
    "spec.model.adapters[].name must not be metadata.name, by which the model itself answers; "
    "rename the adapter, or set model.servedName"
)
COLUMNS = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason'),
    ("Replicas", "integer", ".status.replicas"),
    ("Model", "string", ".spec.model.uri"),
    ("URL", "string", ".status.url"),
    ("Age", "date", ".metadata.creationTimestamp"),
)


def definition() -> Schema:
    """The whole CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{api.PLURAL}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": api.KIND,
                "listKind": f"{api.KIND}List",
                "plural": api.PLURAL,
                "singular": api.KIND.lower(),
                "shortNames": ["qis"],
                "categories": ["quire"],
            },
            "versions": [_version()],
        },
    }


def _version() -> Schema:
    return {
        "name": api.VERSION,
        "served": True,
        "storage": True,
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path} for name, kind, path in COLUMNS
        ],
        "schema": {"openAPIV3Schema": _root()},
    }


def _root() -> Schema:
    rule = api.Rule(NAME_RULE, NAME_MESSAGE, f'"{NAME_MESSAGE}; got " + self.metadata.name')
    adapters = api.Rule(ADAPTER_RULE, ADAPTER_MESSAGE)
    return {
        "type": "object",
        "description": "One language model, served behind one OpenAI-compatible URL.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                # Longer than the rule allows: it only bounds the rule's cost.
                "properties": {"name": {"type": "string", "maxLength": 63}},
            },
            "spec": schema_of(inspect.type_info(api.Spec)) | {"description": _doc(api.Spec)},
            "status": schema_of(inspect.type_info(api.Status), defaults=False)
            | {"description": _doc(api.Status)},
        },
        "x-kubernetes-validations": validations((rule, adapters)),
    }


def _doc(struct: type) -> str:
    return (struct.__doc__ or "").strip()


def schema_of(node: inspect.Type, *, defaults: bool = True) -> Schema:
    """The structural schema of a msgspec type. Raises TypeError for one that has none."""
    if isinstance(node, inspect.Metadata):
        return schema_of(node.type, defaults=defaults) | (node.extra_json_schema or {})
    if isinstance(node, inspect.StructType):
        return _struct(node, defaults)
    if isinstance(node, inspect.ListType):
        return _list(node, defaults)
    if isinstance(node, inspect.UnionType):
        return _union(node, defaults)
    for kind, render in _LEAVES.items():
        if isinstance(node, kind):
            return render(node)
    raise TypeError(f"{node!r} has no structural schema; use plain fields, structs and lists")


def _struct(node: inspect.StructType, defaults: bool) -> Schema:
    schema: Schema = {"type": "object"}
    required = [field.encode_name for field in node.fields if field.required]
    if required:
        schema["required"] = required
    schema["properties"] = {f.encode_name: _field(f, defaults) for f in node.fields}
    rules: tuple[api.Rule, ...] = node.cls.rules  # type: ignore[attr-defined]
    if rules:
        schema["x-kubernetes-validations"] = validations(rules)
    return schema


def _field(field: inspect.Field, defaults: bool) -> Schema:
    schema = schema_of(field.type, defaults=defaults)
    if "description" not in schema and isinstance(field.type, inspect.StructType):
        schema["description"] = _doc(field.type.cls)
    default = field.default
    if defaults and isinstance(default, msgspec.Struct):
        # Written out, not {}: the API server checks the rules on a default before it fills it in.
        properties: dict[str, Schema] = schema["properties"]
        schema["default"] = {k: v["default"] for k, v in properties.items() if "default" in v}
    elif defaults and default is not msgspec.NODEFAULT and default is not None:
        schema["default"] = default
    return schema


def _list(node: inspect.ListType, defaults: bool) -> Schema:
    schema: Schema = {"type": "array", "items": schema_of(node.item_type, defaults=defaults)}
    if node.max_length is not None:
        schema["maxItems"] = node.max_length
    return schema


def _union(node: inspect.UnionType, defaults: bool) -> Schema:
    members = [m for m in node.types if not isinstance(m, inspect.NoneType)]
    if len(members) == 1:
        return schema_of(members[0], defaults=defaults)
    text = [m for m in members if isinstance(m, inspect.StrType)]
    if len(members) == 2 and text and any(isinstance(m, inspect.IntType) for m in members):
        schema: Schema = {"x-kubernetes-int-or-string": True}
        return schema | ({"pattern": text[0].pattern} if text[0].pattern else {})
    raise TypeError(f"{node!r}: the only union that a structural schema has is int-or-string")


def _number(kind: str) -> Callable[[Any], Schema]:
    def render(node: Any) -> Schema:
        bounds = {"minimum": node.ge, "maximum": node.le}
        return {"type": kind, **{k: v for k, v in bounds.items() if v is not None}}

    return render


def _text(node: Any) -> Schema:
    bounds = {"minLength": node.min_length, "maxLength": node.max_length, "pattern": node.pattern}
    return {"type": "string", **{k: v for k, v in bounds.items() if v is not None}}


def _map(node: Any) -> Schema:
    if isinstance(node.value_type, inspect.AnyType):
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {"type": "object", "additionalProperties": schema_of(node.value_type)}


_LEAVES: dict[type[inspect.Type], Callable[[Any], Schema]] = {
    inspect.BoolType: lambda _: {"type": "boolean"},
    inspect.IntType: _number("integer"),
    inspect.FloatType: _number("number"),
    inspect.StrType: _text,
    inspect.LiteralType: lambda node: {"type": "string", "enum": list(node.values)},
    inspect.DictType: _map,
}


def render() -> str:
    """The file's text."""
    return HEADER + yaml.safe_dump(definition(), sort_keys=False, width=100, allow_unicode=True)


def main(root: Path) -> None:
    """Writes the definition where it belongs, and the chart's copy of it."""
    for folder in FOLDERS:
        (root / folder / FILE_NAME).write_text(render())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2])
