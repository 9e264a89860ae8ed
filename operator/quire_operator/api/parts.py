"""What every part of the resource is made with."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, Struct

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"

QuantityField = int | Annotated[str, Meta(pattern=QUANTITY_PATTERN)]
"""A Kubernetes quantity: 2, "500m", "20Gi"."""


class Rule(Struct, frozen=True):
    """A CEL rule of the schema. `message_expression`, CEL too, shows the refused value."""

    rule: str
    message: str
    message_expression: str | None = None


class Part(Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """Base of all that lies in the resource: camelCase on the wire, defaults left out."""

    rules: ClassVar[tuple[Rule, ...]] = ()


def validations(rules: tuple[Rule, ...]) -> list[dict[str, str]]:
    """The rules as the schema has them, below `x-kubernetes-validations`."""
    entries = []
    for rule in rules:
        entry = {"rule": rule.rule, "message": rule.message}
        if rule.message_expression:
            entry["messageExpression"] = rule.message_expression
        entries.append(entry)
    return entries
