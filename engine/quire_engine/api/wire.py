"""Structs as JSON answers."""

import msgspec
from starlette.responses import Response


def json_response(body: msgspec.Struct, status: int = 200) -> Response:
    """`body` as an answer."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
