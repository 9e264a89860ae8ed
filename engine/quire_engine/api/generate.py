"""Runs an answer: submits its sequences, turns outputs into pieces, writes them as one body or as a
stream.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire_engine.api.answers import PromptTokensDetails, Usage
from quire_engine.api.choice import Choice, Piece
from quire_engine.api.client import CoreClient, Generation
from quire_engine.api.errors import ApiError, ClientGone, GenerationFailed
from quire_engine.api.events import DONE, Events, event
from quire_engine.api.front import DIRECT_SEND
from quire_engine.api.shapes import Shape
from quire_engine.messages import AddRequest, Output

logger = logging.getLogger("quire_engine.api.requests")


@dataclass(frozen=True)
class Job:
    """All that one HTTP request wants from the core. `requests` and `choices` go in pairs."""

    requests: Sequence[AddRequest]
    choices: Sequence[Choice]
    choices_per_prompt: int
    arrived: float  # monotonic seconds
    user: str = ""

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, whatever `n`; its first choice knows the cached."""
        prompt = sum(len(r.prompt_token_ids) for r in self.requests[:: self.choices_per_prompt])
        cached = sum(
            choice.num_cached_tokens for choice in self.choices[:: self.choices_per_prompt]
        )
        completion = sum(choice.num_tokens for choice in self.choices)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )


class Answer(Response):
    """A response that generates while it is being sent. Errors before the first byte get their own
    status.
    """

    def __init__(
        self, client: CoreClient, job: Job, shape: Shape, *, stream: bool, log: bool = False
    ) -> None:
        super().__init__(media_type="text/event-stream" if stream else "application/json")
        self._client = client
        self._job = job
        self._choices = {choice.request_id: choice for choice in job.choices}
        self._shape = shape
        self._stream = stream
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with (
            self._client.submit(self._job.requests, arrived=self._job.arrived) as generation,
            _watching(receive, generation),
        ):
            answering = (
                self._send_stream(generation, send, scope["state"][DIRECT_SEND])
                if self._stream
                else self._send_whole(generation, scope, receive, send)
            )
            try:
                # A task of its own: a token wakes it alone, not the dozen coroutines that stand
                # between us and the connection's task, of a thousand streams all out of the cache.
                await asyncio.get_running_loop().create_task(answering)
            except ClientGone:
                self._tell("client_gone")
            else:
                self._tell("finished")

    async def _send_whole(
        self, generation: Generation, scope: Scope, receive: Receive, send: Send
    ) -> None:
        parts: dict[int, list[Piece]] = {choice.index: [] for choice in self._job.choices}
        while generation.is_open:
            for choice, piece in self._pieces(generation, await generation.next()):
                parts[choice.index].append(piece)
        pieces = [_merged(parts[choice.index]) for choice in self._job.choices]
        body = self._shape.whole(self._job.choices, pieces, self._job.usage())
        answer = Response(msgspec.json.encode(body), media_type="application/json")
        await answer(scope, receive, send)

    async def _send_stream(self, generation: Generation, start: Send, send: Send) -> None:
        """The headers go with the first event: until then an error can have its own status."""
        events = Events(self._shape)
        try:
            while generation.is_open:
                pieces = self._pieces(generation, await generation.next())
                if not events.have_begun:
                    await self._start(start)
                told = events.tell(pieces)
                if told:
                    await _send_part(send, told)
        except ApiError as error:
            if not events.have_begun:
                raise
            logger.warning("stream broken id=%s error=%s", self._shape.head.id, error.message)
            await _send_part(send, b"data: " + error.body() + b"\n\n", more=False)
            return
        wants_usage = self._shape.head.usage_in_stream
        tail = event(self._shape.usage(self._job.usage())) if wants_usage else b""
        await _send_part(send, tail + DONE, more=False)

    async def _start(self, send: Send) -> None:
        headers = [
            *self.raw_headers,
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        headers = [header for header in headers if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def _pieces(
        self, generation: Generation, outputs: Sequence[Output]
    ) -> list[tuple[Choice, Piece]]:
        """What `outputs` add, choice by choice. What a slow reader let pile up comes merged."""
        news: dict[int, list[Piece]] = {}
        for output in outputs:
            choice = self._choices[output.request_id]
            if output.finish_reason == "error":
                raise GenerationFailed(output.error or "the engine could not finish this answer")
            news.setdefault(choice.index, []).append(choice.push(output))
            if choice.finish_reason is not None:
                generation.finish(choice.request_id)
        return [(self._job.choices[index], _merged(pieces)) for index, pieces in news.items()]

    def _tell(self, how: str) -> None:
        if self._log:
            usage = self._job.usage()
            logger.info(
                "%s id=%s user=%s prompt_tokens=%d completion_tokens=%d seconds=%.3f",
                how,
                self._shape.head.id,
                self._job.user or "-",
                usage.prompt_tokens,
                usage.completion_tokens,
                time.monotonic() - self._job.arrived,
            )


def _merged(pieces: Sequence[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(position for piece in pieces for position in piece.positions),
        next((piece.finish_reason for piece in pieces if piece.finish_reason is not None), None),
    )


@contextmanager
def _watching(receive: Receive, generation: Generation) -> Iterator[None]:
    """Aborts the generation the moment the client closes its connection, wherever the answer
    stands.
    """
    task = asyncio.get_running_loop().create_task(_leave_on_disconnect(receive, generation))
    try:
        yield
    finally:
        task.cancel()


async def _leave_on_disconnect(receive: Receive, generation: Generation) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.leave()


async def _send_part(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
