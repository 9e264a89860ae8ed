"""What every request passes first: the key, the drain, the count of those in flight. Plain ASGI."""

import hmac
from collections.abc import Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from quire_engine.api.drain import Drain
from quire_engine.api.errors import ApiError, BodyTooLarge, ClientGone, Unauthorized
from quire_engine.api.turnstile import Turnstile

PROBES = frozenset({"/health", "/ready", "/metrics", "/version"})
"""Answered whatever the state, counted nowhere."""

KEY_NUMBER = "key_number"
"""In a request's state: which of the API keys it brought, where there are any."""

DIRECT_SEND = "direct_send"
"""In a request's state: the server's own `send`, for what there is one of a token. Through the
routes' wrappers it is three coroutines.
"""

REQUESTS_A_TURN = 8
"""Requests that begin before the event loop looks at anything else: a few milliseconds."""

DISCARD_FACTOR = 4
"""A body that is too long is read up to so many times the limit, so that the client, still writing,
gets to read the 413; closing at once would reset its connection.
"""


class Front:
    """Wraps the routes."""

    def __init__(self, app: ASGIApp, drain: Drain, api_keys: Sequence[str]) -> None:
        self._app = app
        self._drain = drain
        self._api_keys = [key.encode() for key in api_keys]
        self._turnstile = Turnstile(REQUESTS_A_TURN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state[DIRECT_SEND] = send
        try:
            self._check_key(scope)
            with self._drain.request():
                await self._turnstile.enter()
                await self._app(scope, receive, send)
        except ApiError as error:  # ours alone: the routes turn theirs into answers themselves
            await error.response()(scope, receive, send)
        finally:
            # What sends holds the scope: together they would lie around until garbage is collected.
            del state[DIRECT_SEND]

    def _check_key(self, scope: Scope) -> None:
        if not self._api_keys:
            return
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = sent.partition(b" ")
        matches = [hmac.compare_digest(key.strip(), known) for known in self._api_keys]
        if scheme.lower() != b"bearer" or not any(matches):
            what = "another" if sent else "none"
            raise Unauthorized(
                f"the Authorization header must be 'Bearer' and a key of this server, got {what}; "
                "ask whoever runs it for a key"
            )
        scope.setdefault("state", {})[KEY_NUMBER] = matches.index(True)


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes. BodyTooLarge, ClientGone."""
    body = bytearray()
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                body += chunk
            elif size > DISCARD_FACTOR * limit:
                break
    except ClientDisconnect as error:
        raise ClientGone from error
    if size > limit:
        raise BodyTooLarge(
            f"a request's body must be <= {limit} bytes, got {size} or more; "
            "shorten it, or raise --max-body-bytes",
            close=True,
        )
    return bytes(body)
