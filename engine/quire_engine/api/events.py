"""The events of a stream, as bytes. Pure: pieces in, bytes out."""

from collections.abc import Iterable

import msgspec

from quire_engine.api.choice import Choice, Piece
from quire_engine.api.shapes import Shape

DONE = b"data: [DONE]\n\n"

_STAND_IN = "\x00"  # for a text, while what is around it is made


class Events:
    """One answer's. Most events differ from the one before in their text alone: what is around it
    is encoded once for each choice.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._opened: set[int] = set()
        self._around: dict[int, tuple[bytes, bytes]] = {}

    @property
    def have_begun(self) -> bool:
        """Whether any piece was told."""
        return bool(self._opened)

    def tell(self, news: Iterable[tuple[Choice, Piece]]) -> bytes:
        """The events that tell these pieces; a choice's first come behind its opening."""
        told = b""
        for choice, piece in news:
            if choice.index not in self._opened:
                self._opened.add(choice.index)
                opening = self._shape.opening(choice)
                told += b"" if opening is None else event(opening)
            told += self._piece(choice, piece)
        return told

    def _piece(self, choice: Choice, piece: Piece) -> bytes:
        if piece.is_empty:
            return b""
        if piece.positions or piece.finish_reason is not None:
            return b"".join(event(body) for body in self._shape.chunks(choice, piece))
        around = self._around.get(choice.index)
        if around is None:
            around = self._around[choice.index] = self._around_text(choice)
        return around[0] + msgspec.json.encode(piece.text) + around[1]

    def _around_text(self, choice: Choice) -> tuple[bytes, bytes]:
        """An event's bytes before and behind its text. Behind it nothing is a client's."""
        (body,) = self._shape.chunks(choice, Piece(_STAND_IN))
        before, _, behind = event(body).rpartition(msgspec.json.encode(_STAND_IN))
        return before, behind


def event(body: msgspec.Struct) -> bytes:
    """One event of a stream."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
