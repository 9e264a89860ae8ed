"""Writes the JSON schema of `kubectl quire status -o json` to operator/docs.

Run as `python -m quire_operator.console.schema`. Committed, so that a change of
what programs read shows in the diff.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from quire_operator.console.document import Document

FILE_NAME = "operator/docs/status.schema.json"


def render() -> str:
    """The file's text."""
    return json.dumps(msgspec.json.schema(Document), indent=1, sort_keys=True) + "\n"


def main(root: Path) -> None:
    """Writes it where it belongs."""
    (root / FILE_NAME).write_text(render())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[3])
