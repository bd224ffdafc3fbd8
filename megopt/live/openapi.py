"""What the edge's OpenAPI document says of a route beyond its path: its body, its answers, who may call.

Frames are bytes to OpenAPI; `megopt.live.wire` says what is in them.
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends
from fastapi.security import HTTPBearer

FRAMES = "application/vnd.megopt.frames"
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "string"},
        "reason": {"type": "string"},
        "retry_after_s": {"type": ["number", "null"]},
    },
    "required": ["error"],
}
_ERRORS = {
    400: "The body is nothing that this edge can carry out",
    401: "No token, or a wrong one",
    404: "Nothing is known under this id",
    409: "The id is known for another content",
    429: "Too busy for the deadline; `retry_after_s` says when to come again",
    503: "Shutting down",
}


def answers(status: int, content: str | None, *errors: int, model: type | None = None) -> dict[str, Any]:
    """Return how a route answers, as keyword arguments of FastAPI's `add_api_route`.

    Args:
        status: of success.
        content: media type of success; None for an empty body.
        errors: other statuses, of 400, 404, 409, 429 and 503.
        model: what a JSON answer holds; None for bytes or text.
    """
    said: dict[str, Any] = {"description": "As asked"}
    if model is not None:
        said["model"] = model
    elif content is not None:
        said["content"] = {content: _BYTES}
    return {"status_code": status, "responses": {status: said} | error_answers(*errors), "response_model": None}


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers of these statuses, as FastAPI's `responses`."""
    content = {"application/json": {"schema": _ERROR}}
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


def takes_frame() -> dict[str, Any]:
    """Return that the body of a route is a frame, as a keyword argument of FastAPI's `add_api_route`."""
    return {"openapi_extra": {"requestBody": {"required": True, "content": {FRAMES: _BYTES}}}}


def guarded() -> dict[str, Any]:
    """Return that every route needs the token, as keyword arguments of `FastAPI`; the application must check it."""
    return {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": error_answers(401)}
