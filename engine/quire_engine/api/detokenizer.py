"""Token ids to text, as they come: whole UTF-8 characters only, and nothing of a stop string's
text.

`TextStream` turns ids into text; `StopCutter` holds back what may yet turn out to be a stop string.
Both give the same text however the ids or characters are cut into pieces, so a stream's text is the
whole answer's.
"""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from quire_engine.api.tokenizer import REPLACEMENT, Tokenizer

PROMPT_TAIL = 8
"""Prompt ids that decoding starts from: SentencePiece tokenizers drop a leading space of their
first token.
"""


class TextStream:
    """The growing text of one sequence."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._pending: list[int] = []  # ids since text last came out
        self._stream = self._primed(_context(tokenizer, prompt_token_ids))

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while it ends inside a character."""
        self._pending.append(token_id)
        try:
            text = self._stream.step(self._tokenizer.backend, token_id)
        except (
            Exception
        ):  # tokenizers raises plain Exception when a decoder rewrites what it has given
            return self.flush()
        if text is None:
            return ""
        self._pending.clear()
        return text

    def flush(self) -> str:
        """The text of ids held back, U+FFFD for a character that never came to its end."""
        text = self._tokenizer.decode(self._pending, skip_special_tokens=self._skip_special_tokens)
        self._pending.clear()
        self._stream = self._primed([])
        return text

    def _primed(self, token_ids: list[int]) -> DecodeStream:
        return DecodeStream(ids=token_ids, skip_special_tokens=self._skip_special_tokens)


def _context(tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> list[int]:
    """The prompt's end, where it matters; none where it ends inside a character, to be told as new
    text.
    """
    if tokenizer.byte_level:
        return []
    tail = list(prompt_token_ids[-PROMPT_TAIL:])
    ends_inside = tokenizer.decode(tail, skip_special_tokens=False).endswith(REPLACEMENT)
    return [] if ends_inside else tail


class StopCutter:
    """Lets text through up to the stop string that is complete first (of several, the longest).

    A character at a time, in effect: where the text was cut into pieces makes no difference.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        self._armed_at = 0  # a stop string counts if it ends behind this offset in `_held`
        self.stopped_by: str | None = None

    def push(self, text: str, *, armed: bool = True) -> str:
        """The text that is safe to give away. Unarmed text (before min_tokens) completes no stop
        string.
        """
        if not self._stops or self.stopped_by is not None:
            return "" if self.stopped_by is not None else text
        self._held += text
        if not armed:
            self._armed_at = len(self._held)
        elif self._cut():
            return self._release(len(self._held))
        return self._release(len(self._held) - self._undecided())

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop string ended."""
        return self._release(len(self._held))

    def _cut(self) -> bool:
        """Ends `_held` where the first complete stop string begins (if included, ends)."""
        found = [
            (end, -len(stop), stop)
            for stop in self._stops
            if (end := self._end_of(stop)) is not None
        ]
        if not found:
            return False
        end, _, stop = min(found)
        self.stopped_by = stop
        self._held = self._held[: end if self._include_stop else end - len(stop)]
        return True

    def _end_of(self, stop: str) -> int | None:
        """Where `stop` first ends behind the armed offset."""
        start = self._held.find(stop, max(0, self._armed_at - len(stop) + 1))
        return None if start < 0 else start + len(stop)

    def _undecided(self) -> int:
        """Length of the longest tail of `_held` that a stop string begins with."""
        return max(
            (
                size
                for stop in self._stops
                for size in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:size])
            ),
            default=0,
        )

    def _release(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        self._armed_at = max(0, self._armed_at - size)
        return text
