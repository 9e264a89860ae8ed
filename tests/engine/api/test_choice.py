"""An answer is the same however its tokens were parcelled."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.api.choice import Choice, Piece
from quire_engine.api.detokenizer import StopCutter, TextStream
from quire_engine.api.tokenizer import Tokenizer, load_tokenizer
from quire_engine.messages import Output, RequestId, TokenLogprobs

EOS = 2


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return load_tokenizer(model_dir)


def new_choice(tokenizer: Tokenizer, stops: list[str], **options: object) -> Choice:
    options.setdefault("eos_token_ids", frozenset([EOS]))
    show = bool(options.get("show_stop_token"))
    return Choice(
        0,
        RequestId("r"),
        TextStream(tokenizer, (), skip_special_tokens=True),
        StopCutter(stops, include_stop=show),
        **options,  # type: ignore[arg-type]
    )


def outputs(ids: list[int], borders: list[int], reason: str) -> list[Output]:
    """The ids in parcels, the last with the finish reason."""
    edges = sorted({0, len(ids), *(border for border in borders if border < len(ids))})
    return [
        Output(
            request_id=RequestId("r"),
            token_ids=tuple(ids[begin:end]),
            finish_reason=reason if end == len(ids) else None,  # type: ignore[arg-type]
            stop_token_id=ids[-1] if end == len(ids) and reason == "stop" else None,
            logprobs=tuple(
                TokenLogprobs(chosen=-float(i), top_token_ids=(), top_logprobs=())
                for i in ids[begin:end]
            ),
        )
        for begin, end in pairwise(edges)
    ]


def run(choice: Choice, parcels: list[Output]) -> list[Piece]:
    return [choice.push(parcel) for parcel in parcels]


@given(
    text=st.text("ab\nü", min_size=1, max_size=30),
    borders=st.lists(st.integers(1, 30), max_size=6),
    stops=st.lists(st.text("ab\nü", min_size=1, max_size=3), max_size=3),
    min_tokens=st.integers(0, 5),
    reason=st.sampled_from(["stop", "length"]),
)
def test_parcels_make_no_difference(
    tokenizer: Tokenizer,
    text: str,
    borders: list[int],
    stops: list[str],
    min_tokens: int,
    reason: str,
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False) + ([EOS] if reason == "stop" else [])
    one, many = (new_choice(tokenizer, stops, min_tokens=min_tokens) for _ in range(2))
    whole = run(one, outputs(ids, [], reason))
    parts = run(many, outputs(ids, borders, reason))
    assert "".join(p.text for p in whole) == "".join(p.text for p in parts)
    assert [x for p in whole for x in p.positions] == [x for p in parts for x in p.positions]
    for name in ("finish_reason", "stop_reason", "num_tokens"):
        assert getattr(one, name) == getattr(many, name)
    if not stops:
        assert "".join(p.text for p in whole) == text
        assert one.finish_reason == reason


def test_positions_tell_where_each_token_begins(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello ab", add_special_tokens=False)
    (piece,) = run(new_choice(tokenizer, []), outputs([*ids, EOS], [], "stop"))
    texts = [tokenizer.token_text(position.token_id) for position in piece.positions]
    assert "".join(texts) == "hello ab"
    assert [
        piece.text[p.offset :].startswith(t) for p, t in zip(piece.positions, texts, strict=True)
    ]


def test_tokens_of_a_cut_stop_string_have_no_positions(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x\nyz", add_special_tokens=False)
    choice = new_choice(tokenizer, ["\ny"])
    (piece,) = run(choice, outputs(ids, [], "length"))
    assert piece.text == "x"
    assert len(piece.positions) == 1
    assert (choice.finish_reason, choice.stop_reason, choice.num_tokens) == ("stop", "\ny", 3)


def test_a_stop_token_is_counted_and_not_shown(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("xy", add_special_tokens=False)
    choice = new_choice(tokenizer, [])
    (piece,) = run(choice, outputs([a, b], [], "stop"))
    assert (piece.text, choice.num_tokens, choice.stop_reason) == ("x", 2, b)
    shown = new_choice(tokenizer, [], show_stop_token=True)
    assert run(shown, outputs([a, b], [], "stop"))[0].text == "xy"


def test_end_of_sequence_has_no_stop_reason(tokenizer: Tokenizer) -> None:
    choice = new_choice(tokenizer, [])
    run(choice, outputs([5, EOS], [], "stop"))
    assert choice.stop_reason is None
