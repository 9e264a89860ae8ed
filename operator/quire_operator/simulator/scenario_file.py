"""Reads a scenario file, and says of a bad one what the rule is, what it got and what to write."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from quire_operator import api
from quire_operator.errors import ScenarioError
from quire_operator.simulator.load import Arrival, drawn
from quire_operator.simulator.scenario import Scenario

WAY_OUT = "operator/docs/README.md says what may stand here"
COLUMNS = ("seconds", "prompt_tokens", "answer_tokens")
_AT = re.compile(r" - at (?:`key` in )?`\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`")
_GOT_TYPE = re.compile(r", got `\w+`$")
_MISSING = re.compile(r"Object missing required field `(.*?)`")


def read(path: Path) -> tuple[Scenario, list[Arrival]]:
    """The scenario and its requests in order of arrival. Raises ScenarioError."""
    try:
        scenario = decode(yaml.safe_load(_text(path)))
        return scenario, _arrivals(scenario, path.parent)
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise ScenarioError(f"{path}: must be YAML, got {words}; mend it there") from None
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None


def decode(raw: object) -> Scenario:
    """A scenario as YAML reads it. Raises ScenarioError with the path that is wrong."""
    if not isinstance(raw, dict):
        raise ScenarioError(
            f"a scenario must be a mapping, got {type(raw).__name__}; write durationSeconds: 600 "
            "and so on"
        )
    scaling = raw.get("scaling")
    if isinstance(scaling, dict):
        raw = {**raw, "scaling": {"mode": "builtin", **scaling}}
        _refuse_unknown(scaling, msgspec.inspect.type_info(api.Scaling), "scaling")
    try:
        return msgspec.convert(raw, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(_sentence(str(error), raw)) from None


def _refuse_unknown(value: object, kind: msgspec.inspect.Type, path: str) -> None:
    """The resource's own types take unknown fields, as its schema prunes them before."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.StructType) and isinstance(value, dict):
        fields = {each.encode_name: each.type for each in kind.fields}
        for name, inner in value.items():
            if name not in fields:
                raise ScenarioError(_no_such_key(path, str(name), sorted(fields)))
            _refuse_unknown(inner, fields[name], f"{path}.{name}")
    if isinstance(kind, msgspec.inspect.ListType) and isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_unknown(item, kind.item_type, f"{path}[{index}]")


def _sentence(error: str, raw: object) -> str:
    """msgspec's words with the path in front, the value that it met and a way out."""
    found = _AT.search(error)
    path, words = (found[1], error[: found.start()]) if found else ("", error)
    place = path or "the scenario"
    if unknown := _UNKNOWN.match(words):
        return _no_such_key(path, unknown[1], [])
    if missing := _MISSING.match(words):
        return f"{place}: must have the key {missing[1]}, got none; add it ({WAY_OUT})"
    if "; " in words:  # our own checks, complete already
        return f"{place}: {words}" if path else words
    got = _value_at(raw, path)
    if isinstance(got, int | float | str):
        words = f"{_GOT_TYPE.sub('', words)}, got {got!r}"
    return f"{place}: {words}; {WAY_OUT}"


def _no_such_key(path: str, name: str, known: list[str]) -> str:
    listed = f", use one of {', '.join(known)}" if known else ""
    full = f"{path}.{name}" if path else name
    return (
        f"{full}: unknown keys are refused, got {name!r}; remove it or correct its spelling"
        f"{listed} ({WAY_OUT})"
    )


def _value_at(raw: object, path: str) -> object:
    """What stands at a path of msgspec's such as `load.phases[0].perSecond`; None if unknown."""
    value: Any = raw
    for name, index in re.findall(r"([A-Za-z0-9]+)|\[(\d+)\]", path):
        try:
            value = value[name] if name else value[int(index)]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _arrivals(scenario: Scenario, folder: Path) -> list[Arrival]:
    if scenario.load.trace is None:
        return drawn(scenario)
    recorded = _recorded(folder / scenario.load.trace)
    return [arrival for arrival in recorded if arrival.seconds < scenario.duration_seconds]


def _recorded(path: Path) -> list[Arrival]:
    reader = csv.DictReader(_text(path).splitlines())
    if tuple(reader.fieldnames or ()) != COLUMNS:
        got = ",".join(reader.fieldnames or ()) or "nothing"
        raise ScenarioError(
            f"{path}: the first line must be {','.join(COLUMNS)}, got {got}; write it so"
        )
    arrivals = [_row(path, reader.line_num, row) for row in reader]
    if not arrivals:
        raise ScenarioError(f"{path}: must hold at least one request, got none; add lines")
    return sorted(arrivals, key=lambda arrival: arrival.seconds)


def _row(path: Path, line: int, row: dict[str, str]) -> Arrival:
    try:
        return msgspec.convert(row, Arrival, strict=False)
    except msgspec.ValidationError as error:
        raise ScenarioError(
            f"{path}, line {line}: {error}, got {','.join(map(str, row.values()))}; write seconds "
            ">= 0 and tokens >= 1, without units"
        ) from None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ScenarioError(
            f"must be a file of text, got {path}: {why}; give another path"
        ) from None
