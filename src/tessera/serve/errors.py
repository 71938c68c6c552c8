"""What goes wrong, as the `openai` SDK expects it: one envelope with `message`, `type`, `param` and `code` on every status."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from tessera.errors import UserError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorBody(BaseModel):
    """The four fields of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class Envelope(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody


class ApiError(Exception):
    """An answer that is not a success.

    Args:
        status: of HTTP.
        message: one sentence for a person.
        param: the field that is meant, `messages[0].content`.
        code: for programs.
        type: the kind; by default what the status says.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.type = type or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The envelope."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer to send."""
        return JSONResponse(self.body, self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """400: a field has a value that cannot be."""
    return ApiError(400, message, param, code)


def not_found(what: str, id: str, param: str | None = None) -> ApiError:
    """404: no object of this key has that id; what belongs to another key is not there either."""
    return ApiError(404, f"No {what} found with id '{id[:100]}'.", param, "not_found")


def too_busy(message: str, seconds: float, code: str = "rate_limit_exceeded") -> ApiError:
    """429 that says after how many seconds to come again."""
    wait = max(1, math.ceil(seconds))
    return ApiError(429, message, code=code, headers={"retry-after": str(wait)})


def not_here(what: str, brought_by: str) -> ApiError:
    """501: a route that stands, but whose models are not in this version."""
    headers = {"x-should-retry": "false"}  # the SDK would try a 501 again
    return ApiError(501, f"{what}: not in this version; {brought_by}.", code="not_implemented", headers=headers)


def sentence(error: BaseException | str) -> str:
    """What an exception says, with a capital."""
    text = str(error)
    return text[:1].upper() + text[1:]


def of_exception(error: BaseException) -> ApiError:
    """Any exception as an answer; what nobody foresaw says nothing of its insides."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return invalid(str(error))
    return ApiError(500, "The server had an error while processing your request; its log has the details.", code="internal_error")


def handle_all(app: FastAPI) -> None:
    """Makes `app` answer every exception in the envelope."""

    @app.exception_handler(ApiError)
    @app.exception_handler(UserError)
    async def known(request: Request, error: Exception) -> JSONResponse:
        if error.__cause__ is not None:
            request.app.state.server.log.write("failure", cause=repr(error.__cause__))
        return of_exception(error).response()

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return of_validation(error.errors(), error.body).response()

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return of_exception(error).response()

    @app.exception_handler(HTTPException)
    async def by_status(request: Request, error: HTTPException) -> JSONResponse:
        route = f"{request.method} {request.url.path}"
        known_errors = {
            404: ApiError(404, f"Invalid URL ({route}).", code="unknown_url"),
            405: ApiError(405, f"Not allowed: {route}.", code="method_not_allowed", headers=error.headers),
            413: ApiError(413, "The body of the request is too large.", code="request_too_large"),
        }
        found = known_errors.get(error.status_code)
        return (found or ApiError(error.status_code, str(error.detail), code="bad_request")).response()


def of_validation(errors: Sequence[Any], body: Any) -> ApiError:
    """The first and deepest complaint of pydantic about `body` as a 400 that names the field."""
    # A union complains once per member; the member that got farthest is the one that was meant.
    error = max(errors, key=lambda e: len(_path(e, body)))
    kind, path = error["type"], _path(error, body)
    param = _spell(path) or None
    if kind == "json_invalid":
        return ApiError(400, f"The body of the request is not valid JSON: {error['ctx']['error']}.", code="invalid_json")
    if param is None:
        return ApiError(400, "The body must be a JSON object, sent with content-type: application/json.", code="invalid_body")
    if kind == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param, "unknown_parameter")
    said = str(error["msg"]).removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return ApiError(400, f"Invalid value for '{param}': {said[:1].lower()}{said[1:]}.", param, code)


def _path(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """The place in `body` that pydantic complains of; what its location says of union members is left out."""
    loc: Sequence[str | int] = error["loc"]
    if loc and loc[0] in ("query", "path", "header"):
        return list(loc[1:])
    path: list[str | int] = []
    where = body
    steps = loc[1:] if loc and loc[0] == "body" else loc
    for number, step in enumerate(steps):
        inside = step in where if isinstance(where, Mapping) else isinstance(where, list) and step in range(len(where))
        if inside:
            where = where[step]
        elif error["type"] != "missing" or number < len(steps) - 1:
            continue
        path.append(step)
    return path


def _spell(path: Sequence[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
