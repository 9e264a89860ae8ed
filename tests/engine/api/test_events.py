"""Events whose surroundings are encoded once are the bytes that encoding each one gives."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.api.choice import Choice, Piece, Position
from quire_engine.api.detokenizer import StopCutter, TextStream
from quire_engine.api.events import Events, event
from quire_engine.api.shapes import AnswerHead, ChatShape, CompletionShape, Shape
from quire_engine.api.tokenizer import Tokenizer, load_tokenizer
from quire_engine.messages import RequestId, TokenLogprobs

POSITION = Position(3, 0, TokenLogprobs(chosen=-0.5, top_token_ids=(3,), top_logprobs=(-0.5,)))
TEXTS = st.text('ab"\\\n\x00üd日', max_size=5)  # the stand-in of a text among them
PIECES = st.builds(
    Piece,
    TEXTS,
    st.sampled_from([(), (POSITION,)]),
    st.sampled_from([None, None, None, "length"]),
)


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return load_tokenizer(model_dir)


def choice_of(tokenizer: Tokenizer, index: int) -> Choice:
    text = TextStream(tokenizer, (), skip_special_tokens=True)
    return Choice(index, RequestId("r"), text, StopCutter([]))


def encoded_one_by_one(shape: Shape, news: list[tuple[Choice, Piece]]) -> bytes:
    told, opened = b"", set[int]()
    for choice, piece in news:
        opening = None if choice.index in opened else shape.opening(choice)
        opened.add(choice.index)
        told += b"" if opening is None else event(opening)
        if not piece.is_empty:
            told += b"".join(event(chunk) for chunk in shape.chunks(choice, piece))
    return told


@pytest.mark.parametrize("make_shape", [ChatShape, CompletionShape])
@given(
    model=TEXTS,
    wants_logprobs=st.booleans(),
    usage=st.booleans(),
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 1), PIECES), min_size=1, max_size=4), max_size=4
    ),
)
def test_the_bytes_are_those_of_each_event_encoded_whole(
    tokenizer: Tokenizer,
    make_shape: type[ChatShape] | type[CompletionShape],
    model: str,
    wants_logprobs: bool,
    usage: bool,
    batches: list[list[tuple[int, Piece]]],
) -> None:
    head = AnswerHead("cmpl-1", 7, model, wants_logprobs=wants_logprobs, usage_in_stream=usage)
    shape = make_shape(head, tokenizer)
    choices = [choice_of(tokenizer, index) for index in range(2)]
    events, told = Events(shape), b""
    assert not events.have_begun
    for batch in batches:
        told += events.tell([(choices[index], piece) for index, piece in batch])
        assert events.have_begun
    news = [(choices[index], piece) for batch in batches for index, piece in batch]
    assert told == encoded_one_by_one(shape, news)
