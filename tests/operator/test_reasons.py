"""The table of reasons: one entry each, in words, and printed as it is."""

import ast
from pathlib import Path

import pytest

from quire_operator import reasons, reasons_page
from quire_operator.reasons import TABLE, Entry

ROOT = Path(__file__).parents[2]


def test_each_reason_is_told_once() -> None:
    assert len(set(reasons.REASONS)) == len(reasons.REASONS)


@pytest.mark.parametrize("entry", TABLE, ids=[entry.reason for entry in TABLE])
def test_a_reason_is_one_word_and_its_texts_are_sentences(entry: Entry) -> None:
    assert entry.reason.isalnum()
    assert entry.reason[0].isupper()
    for text in (entry.cause, entry.remedy):
        assert text[0].isupper() or text[0] == "`"
        assert text.endswith(".")
        assert "|" not in text, "it would end a column"


def test_the_page_is_the_table() -> None:
    committed = (ROOT / reasons_page.PAGE).read_text()
    assert committed == reasons_page.render(), (
        "run `python -m quire_operator.reasons_page` and commit the result"
    )


# ---- every reason is provoked on the real cluster ----

ASKING = frozenset({"wait_reason", "found", "found_of_pod", "found_beside"})
"""The functions by which an end-to-end test waits for a reason of Ready."""

NOT_PROVOKED = {
    "Evicted": "the kubelet measures volumes once a minute, and a node has no memory to waste",
    "InvalidSpec": "the API server refuses such a spec; only an older CRD would let it in",
    "NodeLost": "the test cluster has one node, on which everything else runs",
    "SourceUnreachable": "tests/engine/fetch has its causes, test_inquiry.py what is told of them",
    "Stalled": "tests/engine/fetch has its causes, test_inquiry.py what is told of them",
}
"""Why no end-to-end test does; what the rules find: test_conditions.py, test_pod_conditions.py."""


def provoked() -> set[str]:
    """The reasons that tests/e2e waits for, read from its calls."""
    found = set()
    for path in (ROOT / "tests/e2e").glob("test_*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and _name(call.func) in ASKING:
                words = (a.value for a in call.args if isinstance(a, ast.Constant))
                found |= {word for word in words if word in reasons.REASONS}
    return found


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def test_every_reason_is_provoked_end_to_end_or_says_why_not() -> None:
    assert provoked() | NOT_PROVOKED.keys() == set(reasons.REASONS)
    assert not provoked() & NOT_PROVOKED.keys(), "one that is provoked needs no excuse"
