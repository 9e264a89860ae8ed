"""How an answer is written: whole and in chunks, for chat and for completions. Pure: pieces in,
structs out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from quire_engine.api import answers
from quire_engine.api.choice import Choice, Piece, Position
from quire_engine.api.tokenizer import Tokenizer


@dataclass(frozen=True)
class AnswerHead:
    """What every body of one answer begins with."""

    id: str
    created: int  # Unix seconds
    model: str
    wants_logprobs: bool
    usage_in_stream: bool  # stream_options.include_usage


class Shape(Protocol):
    """One route's way to write."""

    head: AnswerHead

    def opening(self, choice: Choice) -> msgspec.Struct | None:
        """The event that a choice's stream begins with, if it has one."""
        ...

    def chunks(self, choice: Choice, piece: Piece) -> list[msgspec.Struct]:
        """The events that tell a piece."""
        ...

    def whole(
        self, choices: Sequence[Choice], pieces: Sequence[Piece], usage: answers.Usage
    ) -> msgspec.Struct:
        """The answer in one body; a piece, merged, for each choice."""
        ...

    def usage(self, usage: answers.Usage) -> msgspec.Struct:
        """The last event, where usage was asked for."""
        ...


class ChatShape:
    """/v1/chat/completions."""

    def __init__(self, head: AnswerHead, tokenizer: Tokenizer) -> None:
        self.head = head
        self._tokenizer = tokenizer
        self._no_usage: UnsetType | None = None if head.usage_in_stream else UNSET

    def opening(self, choice: Choice) -> msgspec.Struct:
        delta = answers.Delta(role="assistant", content="")
        return self._chunk(answers.ChatChunkChoice(index=choice.index, delta=delta))

    def chunks(self, choice: Choice, piece: Piece) -> list[msgspec.Struct]:
        """The end comes in an event of its own, with an empty delta, as OpenAI sends it."""
        chunks: list[msgspec.Struct] = []
        if piece.text or piece.positions:
            chunks.append(
                self._chunk(
                    answers.ChatChunkChoice(
                        index=choice.index,
                        delta=answers.Delta(content=piece.text),
                        logprobs=self._logprobs(piece.positions),
                    )
                )
            )
        if piece.finish_reason is not None:
            chunks.append(
                self._chunk(
                    answers.ChatChunkChoice(
                        index=choice.index,
                        delta=answers.Delta(),
                        finish_reason=piece.finish_reason,
                        stop_reason=choice.stop_reason,
                    )
                )
            )
        return chunks

    def whole(
        self, choices: Sequence[Choice], pieces: Sequence[Piece], usage: answers.Usage
    ) -> msgspec.Struct:
        return answers.ChatCompletion(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=[
                answers.ChatChoice(
                    index=choice.index,
                    message=answers.AnswerMessage(content=piece.text),
                    logprobs=self._logprobs(piece.positions),
                    finish_reason=_ended(choice),
                    stop_reason=choice.stop_reason,
                )
                for choice, piece in zip(choices, pieces, strict=True)
            ],
            usage=usage,
        )

    def usage(self, usage: answers.Usage) -> msgspec.Struct:
        return answers.ChatChunk(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=[],
            usage=usage,
        )

    def _chunk(self, choice: answers.ChatChunkChoice) -> answers.ChatChunk:
        return answers.ChatChunk(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=[choice],
            usage=self._no_usage,
        )

    def _logprobs(self, positions: Sequence[Position]) -> answers.ChatLogprobs | None:
        if not self.head.wants_logprobs:
            return None
        return answers.ChatLogprobs(content=[self._token(position) for position in positions])

    def _token(self, position: Position) -> answers.TokenLogprob:
        logprobs, tokenizer = position.logprobs, self._tokenizer
        return answers.TokenLogprob(
            token=tokenizer.token_text(position.token_id),
            logprob=logprobs.chosen,
            bytes=list(tokenizer.token_bytes(position.token_id)),
            top_logprobs=[
                answers.TopLogprob(
                    token=tokenizer.token_text(token_id),
                    logprob=logprob,
                    bytes=list(tokenizer.token_bytes(token_id)),
                )
                for token_id, logprob in zip(
                    logprobs.top_token_ids, logprobs.top_logprobs, strict=True
                )
            ],
        )


class CompletionShape:
    """/v1/completions."""

    def __init__(self, head: AnswerHead, tokenizer: Tokenizer) -> None:
        self.head = head
        self._tokenizer = tokenizer
        self._no_usage: UnsetType | None = None if head.usage_in_stream else UNSET

    def opening(self, choice: Choice) -> None:
        return None

    def chunks(self, choice: Choice, piece: Piece) -> list[msgspec.Struct]:
        return [self._body([self._choice(choice, piece)], self._no_usage)]

    def whole(
        self, choices: Sequence[Choice], pieces: Sequence[Piece], usage: answers.Usage
    ) -> msgspec.Struct:
        return self._body(
            [self._choice(*both) for both in zip(choices, pieces, strict=True)], usage
        )

    def usage(self, usage: answers.Usage) -> msgspec.Struct:
        return self._body([], usage)

    def _body(
        self, choices: list[answers.CompletionChoice], usage: answers.Usage | UnsetType | None
    ) -> answers.Completion:
        return answers.Completion(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            choices=choices,
            usage=usage,
        )

    def _choice(self, choice: Choice, piece: Piece) -> answers.CompletionChoice:
        ended = piece.finish_reason is not None
        return answers.CompletionChoice(
            index=choice.index,
            text=piece.text,
            logprobs=self._logprobs(piece.positions) if self.head.wants_logprobs else None,
            finish_reason=piece.finish_reason,
            stop_reason=choice.stop_reason if ended else UNSET,
        )

    def _logprobs(self, positions: Sequence[Position]) -> answers.CompletionLogprobs:
        text = self._tokenizer.token_text
        return answers.CompletionLogprobs(
            text_offset=[position.offset for position in positions],
            token_logprobs=[position.logprobs.chosen for position in positions],
            tokens=[text(position.token_id) for position in positions],
            top_logprobs=[
                {
                    text(token_id): logprob
                    for token_id, logprob in zip(
                        (*position.logprobs.top_token_ids, position.token_id),
                        (*position.logprobs.top_logprobs, position.logprobs.chosen),
                        strict=True,
                    )
                }
                for position in positions
            ],
        )


def _ended(choice: Choice) -> answers.FinishReason:
    assert choice.finish_reason is not None
    return choice.finish_reason
