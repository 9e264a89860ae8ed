"""The document of `-o json`: its schema is the committed one, and what is written is of it."""

import json
from pathlib import Path

import msgspec
import pytest

from quire_operator.console import schema
from quire_operator.console.command import as_json
from quire_operator.console.document import Document

ROOT = Path(__file__).parents[3]
STORIES = sorted((Path(__file__).parent / "stories").glob("*.json"))


def test_committed_schema_equals_the_generated_one() -> None:
    committed = (ROOT / schema.FILE_NAME).read_text()
    assert committed == schema.render(), "run `python -m quire_operator.console.schema`, commit it"


def test_every_key_is_required() -> None:
    """What a program looks for is there, if only as null."""
    for name, part in json.loads(schema.render())["$defs"].items():
        assert part["additionalProperties"] is False, name
        assert set(part["required"]) == set(part["properties"]), name


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_what_is_written_reads_back_whole(path: Path) -> None:
    """Every key is written, null ones too."""
    document = msgspec.json.decode(path.read_bytes(), type=Document)
    assert json.loads(as_json(document)) == json.loads(path.read_text())
