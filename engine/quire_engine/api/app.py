"""The table of routes, and what becomes of errors. Starlette without FastAPI: see README.md."""

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quire_engine.api.errors import (
    ApiError,
    ClientGone,
    GenerationFailed,
    MethodNotAllowed,
    NotFound,
)
from quire_engine.api.handlers import Handlers
from quire_engine.api.probes import Probes

logger = logging.getLogger(__name__)


def build_app(handlers: Handlers, probes: Probes) -> Starlette:
    """The application behind `Front`."""
    app = Starlette(
        routes=[
            Route("/health", probes.health),
            Route("/ready", probes.ready),
            Route("/metrics", probes.metrics),
            Route("/version", probes.version),
            Route("/v1/models", handlers.models),
            Route("/v1/models/{model:path}", handlers.model),
            Route("/v1/chat/completions", handlers.chat_completions, methods=["POST"]),
            Route("/v1/completions", handlers.completions, methods=["POST"]),
            Route("/tokenize", handlers.tokenize, methods=["POST"]),
            Route("/detokenize", handlers.detokenize, methods=["POST"]),
            Route("/reset_prefix_cache", handlers.reset_prefix_cache, methods=["POST"]),
        ],
        exception_handlers={
            ApiError: _told,
            ClientGone: _nobody_to_tell,
            HTTPException: _routing_error,
            Exception: _our_fault,
        },
    )
    app.router.redirect_slashes = False
    return app


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _nobody_to_tell(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's number for it; goes to a closed connection


async def _routing_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = MethodNotAllowed(
            f"the method must be one of {allowed}, got {where}; use one of them"
        ).response()
        response.headers["Allow"] = allowed
        return response
    return NotFound(
        f"the path must be a route of this server, got {where}; see the README"
    ).response()


async def _our_fault(request: Request, error: Exception) -> Response:
    """Starlette raises `error` on after this answer, and uvicorn logs it with its traceback."""
    return GenerationFailed(
        "the server failed on this request; it has logged why", code="internal_error"
    ).response()
