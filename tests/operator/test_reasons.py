"""The table of reasons: one entry each, in words, and printed as it is."""

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
