"""The table of reasons: one entry each, in words, and printed as it is."""

import ast
from collections.abc import Iterator
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


ENDING = ASKING | {"cleared", "pause", "wait_ready", "wait_condition"}
"""The functions by which it then waits for the reason's end: for any other word of Ready's."""


def provoked() -> set[str]:
    """The reasons that tests/e2e waits for, read from its calls."""
    return {reason for calls in _tests() for call in calls for reason in _asked(call)}


def cleared() -> set[str]:
    """Those of which the same test sees the end."""
    return {
        reason
        for calls in _tests()
        for number, call in enumerate(calls)
        for reason in _asked(call)
        if any(reason not in _asked(later) for later in calls[number + 1 :])
    }


def _tests() -> Iterator[list[ast.Call]]:
    """The waits of each end-to-end test, in the order in which they are written."""
    for path in (ROOT / "tests/e2e").glob("test_*.py"):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
                waits = [call for call in calls if _name(call.func) in ENDING]
                yield sorted(waits, key=lambda call: (call.lineno, call.col_offset))


def _asked(call: ast.Call) -> set[str]:
    if _name(call.func) not in ASKING:
        return set()
    words = {argument.value for argument in call.args if isinstance(argument, ast.Constant)}
    return words & set(reasons.REASONS)


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def test_every_reason_is_provoked_end_to_end() -> None:
    assert provoked() == set(reasons.REASONS)


def test_of_every_trouble_its_end_is_seen_too() -> None:
    assert cleared() >= {entry.reason for entry in TABLE if entry.is_trouble}
