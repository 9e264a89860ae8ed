"""Streamed text is the whole text, and stop strings cut where the text alone says."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from quire_engine.api.detokenizer import StopCutter, TextStream
from quire_engine.api.tokenizer import SpecialTokens, Tokenizer, load_tokenizer

ALPHABET = "ab\nü日"
texts = st.text(ALPHABET, max_size=40)
stop_lists = st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4)


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    """A text in pieces."""
    text = draw(texts)
    borders = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]


def reference_cut(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """Read the text a character at a time until it ends with a stop string; the longest counts."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def cut(
    pieces: list[str], stops: list[str], *, include: bool = False
) -> tuple[list[str], str | None]:
    cutter = StopCutter(stops, include_stop=include)
    out = [cutter.push(piece) for piece in pieces]
    if cutter.stopped_by is None:
        out.append(cutter.flush())
    return out, cutter.stopped_by


@given(cut_texts(), stop_lists, st.booleans())
def test_pieces_make_no_difference(pieces: list[str], stops: list[str], include: bool) -> None:
    out, stopped_by = cut(pieces, stops, include=include)
    assert ("".join(out), stopped_by) == reference_cut("".join(pieces), stops, include=include)


@given(cut_texts(), stop_lists)
def test_only_what_may_become_a_stop_string_is_held_back(
    pieces: list[str], stops: list[str]
) -> None:
    cutter = StopCutter(stops)
    given_away = ""
    for index, piece in enumerate(pieces):
        given_away += cutter.push(piece)
        if cutter.stopped_by is not None:
            return
        held = "".join(pieces[: index + 1])[len(given_away) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_text_before_min_tokens_completes_no_stop_string() -> None:
    cutter = StopCutter(["ab"])
    assert cutter.push("xab", armed=False) == "xab"
    assert cutter.push("a", armed=False) == ""
    assert cutter.push("b") == ""
    assert cutter.stopped_by == "ab"


def test_nothing_comes_after_a_stop_string() -> None:
    cutter = StopCutter(["."])
    assert cutter.push("a.b") == "a"
    assert cutter.push("c") == ""


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return load_tokenizer(model_dir)


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    by_bytes = {tokenizer.token_bytes(index): index for index in range(3, 259)}
    return [by_bytes[bytes([byte])] for byte in data]


@given(text=st.text(max_size=30))
def test_text_comes_back_whole_characters_at_a_time(tokenizer: Tokenizer, text: str) -> None:
    stream = TextStream(tokenizer, (), skip_special_tokens=True)
    pieces = [stream.push(i) for i in tokenizer.encode(text, add_special_tokens=False)]
    assert "\N{REPLACEMENT CHARACTER}" in text or "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces) + stream.flush() == text


@given(data=st.binary(max_size=30))
def test_any_bytes_stream_as_they_decode_at_once(tokenizer: Tokenizer, data: bytes) -> None:
    ids = byte_ids(tokenizer, data)
    stream = TextStream(tokenizer, (), skip_special_tokens=True)
    text = "".join(stream.push(index) for index in ids) + stream.flush()
    assert text == data.decode(errors="replace")


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_on_demand(tokenizer: Tokenizer, skip: bool) -> None:
    stream = TextStream(tokenizer, (), skip_special_tokens=skip)
    ids = tokenizer.encode("a<|im_end|>b", add_special_tokens=False)
    text = "".join(stream.push(index) for index in ids) + stream.flush()
    assert text == ("ab" if skip else "a<|im_end|>b")


def metaspace_tokenizer() -> Tokenizer:
    """SentencePiece's way: the first token of a text loses its leading space."""
    vocabulary = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3, "<0xE2>": 4, "<0x82>": 5, "<0xAC>": 6}
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend, SpecialTokens())


def test_an_answer_keeps_its_leading_space_behind_a_prompt() -> None:
    stream = TextStream(metaspace_tokenizer(), (1,), skip_special_tokens=True)
    assert [stream.push(index) for index in (2, 3)] == [" cat", "s"]


def test_byte_fallback_gives_whole_characters_and_exact_bytes() -> None:
    tokenizer = metaspace_tokenizer()
    stream = TextStream(tokenizer, (1,), skip_special_tokens=True)
    assert "".join(stream.push(index) for index in (2, 4, 5, 6)) == " cat€"
    assert tokenizer.token_bytes(4) == b"\xe2"


def test_a_prompt_that_ends_inside_a_character_is_not_told_again() -> None:
    stream = TextStream(metaspace_tokenizer(), (1, 4), skip_special_tokens=True)
    assert "the" not in stream.push(3) + stream.flush()
