"""What a client can be told, each with its HTTP status, in OpenAI's shape.

    ApiError
    ├── InvalidRequest      400  a parameter breaks a rule, or is not supported
    │   └── PromptTooLong   400  code context_length_exceeded
    ├── Unauthorized        401
    ├── NotFound            404  no such route
    │   └── ModelNotFound   404  code model_not_found
    ├── MethodNotAllowed    405
    ├── BodyTooLarge        413
    ├── QueueFull           429  with Retry-After
    ├── HeadTooLarge        431
    ├── GenerationFailed    500  the core gave this request up, or died under it
    └── Unavailable         503  loading or draining, with Retry-After

`ClientGone` is no ApiError: nobody is left to be told.

A message is rule + input + way out.
"""

from typing import ClassVar

import msgspec
from starlette.responses import Response


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What an error answer's body is, and what an error event in a stream carries."""

    error: ErrorBody


class ApiError(Exception):
    """Root of what a client is told. `param` names the request's field, `code` is for programs."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.retry_after = retry_after
        self.close = close

    def body(self) -> bytes:
        """The JSON body."""
        return msgspec.json.encode(
            ErrorEnvelope(
                error=ErrorBody(
                    message=self.message, type=self.type, param=self.param, code=self.code
                )
            )
        )

    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.close:
            headers["Connection"] = "close"
        return headers

    def response(self) -> Response:
        """The whole answer."""
        return Response(
            self.body(), self.status, headers=self.headers(), media_type="application/json"
        )


class InvalidRequest(ApiError):
    """The request breaks a rule; sending it again will not help."""

    status = 400
    type = "invalid_request_error"


class PromptTooLong(InvalidRequest):
    """Prompt, or prompt and answer together, do not fit the context."""

    code = "context_length_exceeded"


class Unauthorized(ApiError):
    """No API key, or none of ours."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        """Says which scheme we take (RFC 9110, 11.6.1)."""
        return {**super().headers(), "WWW-Authenticate": "Bearer"}


class NotFound(ApiError):
    """No such route."""

    status = 404
    type = "invalid_request_error"
    code = "unknown_url"


class ModelNotFound(NotFound):
    """The request names a model that is not served here."""

    code = "model_not_found"


class MethodNotAllowed(ApiError):
    """The route exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooLarge(ApiError):
    """The body is over --max-body-bytes. The connection closes: the rest is not read."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class QueueFull(ApiError):
    """As many requests wait as may; come back later."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class HeadTooLarge(ApiError):
    """Request line and headers are over --max-header-bytes."""

    status = 431
    type = "invalid_request_error"
    code = "head_too_large"


class GenerationFailed(ApiError):
    """The core gave this request up, or died under it."""

    code = "generation_failed"


class Unavailable(ApiError):
    """Not ready yet, or not any more."""

    status = 503
    code = "not_ready"


class ClientGone(Exception):
    """The client closed its connection; its sequences are already aborted."""
