"""One answer in the making: token ids come in, pieces of text and log-probabilities go out."""

from collections import deque

import msgspec

from quire_engine.api.answers import FinishReason
from quire_engine.api.detokenizer import StopCutter, TextStream
from quire_engine.messages import Output, RequestId, TokenLogprobs


class Position(msgspec.Struct, frozen=True, gc=False):
    """One token of the answer, with its log-probabilities."""

    token_id: int
    offset: int  # characters of the answer before it
    logprobs: TokenLogprobs


class Piece(msgspec.Struct, frozen=True, gc=False):
    """What an output adds to the answer. There is one a token: a struct is made in a tenth of a
    dataclass's time.
    """

    text: str
    positions: tuple[Position, ...] = ()
    finish_reason: FinishReason | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not self.text and not self.positions and self.finish_reason is None


class Choice:
    """One sequence's answer. The end-of-sequence token is counted, not shown, as everywhere."""

    def __init__(
        self,
        index: int,
        request_id: RequestId,
        text: TextStream,
        cutter: StopCutter,
        *,
        min_tokens: int = 0,
        show_stop_token: bool = False,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._text = text
        self._cutter = cutter
        self._min_tokens = min_tokens
        self._show_stop_token = show_stop_token
        self._eos_token_ids = eos_token_ids
        self._num_decoded = 0  # characters
        self._num_released = 0
        self._positions: deque[Position] = deque()

    def push(self, output: Output) -> Piece:
        """Take what a step gave. Nothing more is taken once the answer is finished."""
        if self.finish_reason is not None:
            return Piece("")
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        text = self._safe_text(output)
        if self.finish_reason is None and output.finish_reason is not None:
            text += self._end(output)
        self._num_released += len(text)
        return Piece(text, self._released_positions(), self.finish_reason)

    def _safe_text(self, output: Output) -> str:
        """What the output's tokens add, up to a stop string."""
        text = ""
        for place, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            if self._is_hidden_stop(output, place):
                break
            if output.logprobs:
                self._positions.append(
                    Position(token_id, self._num_decoded, output.logprobs[place])
                )
            decoded = self._text.push(token_id)
            self._num_decoded += len(decoded)
            text += self._cutter.push(decoded, armed=self.num_tokens >= self._min_tokens)
            if self._cutter.stopped_by is not None:
                self._stop(self._cutter.stopped_by)
                break
        return text

    def _is_hidden_stop(self, output: Output, place: int) -> bool:
        ended_by_token = output.finish_reason == "stop" and place == len(output.token_ids) - 1
        return ended_by_token and not self._show_stop_token

    def _end(self, output: Output) -> str:
        """What was held back; a stop string may be complete only with it."""
        rest = self._text.flush()
        self._num_decoded += len(rest)
        text = self._cutter.push(rest)
        if self._cutter.stopped_by is not None:
            self._stop(self._cutter.stopped_by)
            return text
        self.finish_reason = "length" if output.finish_reason == "length" else "stop"
        if output.stop_token_id not in self._eos_token_ids:
            self.stop_reason = output.stop_token_id
        return text + self._cutter.flush()

    def _stop(self, stop: str) -> None:
        self.finish_reason, self.stop_reason = "stop", stop

    def _released_positions(self) -> tuple[Position, ...]:
        """Those whose text has begun to come out; at an uncut end, all."""
        if not self._positions:
            return ()
        uncut = self.finish_reason is not None and self._cutter.stopped_by is None
        released = []
        while self._positions and (uncut or self._positions[0].offset < self._num_released):
            released.append(self._positions.popleft())
        return tuple(released)
