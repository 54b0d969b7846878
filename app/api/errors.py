"""One table: error -> status and OpenAI's error type. Everything that leaves as an error leaves through here."""

import difflib
import errno
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from app.contracts.tuners import TUNERS
from app.core import errors

# The stock client retries 408, 409, 429 and 5xx, so a permanent refusal is another 4xx or says `x-should-retry: false`.
STATUS: dict[type[errors.ModelwrightError], tuple[int, str]] = {
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.Unauthenticated: (401, "authentication_error"),
    errors.PermissionDenied: (403, "permission_error"),
    errors.NotFound: (404, "invalid_request_error"),
    errors.IdempotencyKeyReused: (422, "invalid_request_error"),
    errors.CreationInProgress: (409, "invalid_request_error"),
    errors.QuotaExceeded: (429, "rate_limit_error"),
    errors.Overloaded: (429, "rate_limit_error"),
    errors.StorageFull: (507, "server_error"),
    errors.DeadlineExceeded: (503, "server_error"),
    errors.Unavailable: (503, "server_error"),
}
_HTTP_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def envelope(message: str, kind: str, code: str | None, param: str | None, path: str) -> dict[str, Any]:
    """OpenAI's error body; under `/v2` a string alone, all that the clients of that protocol read."""
    if path == "/v2" or path.startswith("/v2/"):
        return {"error": message}
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def respond(exc: errors.ModelwrightError, path: str) -> JSONResponse:
    """The answer for one of our errors to a call of `path`."""
    status, kind = next(STATUS[c] for c in type(exc).__mro__ if c in STATUS)
    headers = {"retry-after": str(exc.retry_after)} if exc.retry_after else {}
    if exc.should_retry is not None:
        headers["x-should-retry"] = str(exc.should_retry).lower()
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(envelope(exc.message, kind, exc.code, exc.param, path), status, headers)


# pydantic names the member of a union that complained; a caller knows only the field.
_UNION_MEMBER = re.compile(rf"constrained-|function-|.*\[|({'|'.join(TUNERS)}|str|int|float)$")


def install(app: FastAPI) -> None:
    """Answer our errors, validation errors and HTTP errors with one envelope; surprises, the middleware does."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


async def answer(request: Request, exc: Exception) -> Response:
    """The answer to an error that FastAPI did not see; a surprise is raised again."""
    for kind in type(exc).__mro__:
        if kind in _HANDLERS:
            return await _HANDLERS[kind](request, exc)
    raise exc


async def _ours(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, errors.ModelwrightError)
    return respond(exc, request.scope["path"])


async def _disk(request: Request, exc: Exception) -> JSONResponse:
    """A full disk is the operator's to mend; any other trouble with files is a surprise."""
    if not isinstance(exc, OSError) or exc.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise exc
    message = "the disk is full and nothing was kept: delete files or models, or give the store more space"
    return respond(errors.StorageFull(message), request.url.path)


async def _replay(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.AlreadyCreated)
    return Response(exc.answer, headers={"idempotent-replayed": "true"}, media_type="application/json")


async def _validation(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    found = _most_telling(exc.errors())
    path = [str(p) for p in found["loc"] if p not in ("body", "query", "path", "header")]
    param = ".".join(p for p in path if not _UNION_MEMBER.match(p)) or None
    message = f"{param}: {_say(found)}" if param else _say(found)
    code = "unknown_field" if found["type"] == "extra_forbidden" else "invalid_value"
    if found["type"] == "missing":
        code = "missing_field"
    if found["type"] == "json_invalid":
        code, param = "invalid_json", None
        message = f"the body is not valid JSON ({found.get('ctx', {}).get('error', 'cannot be parsed')})"
    return JSONResponse(envelope(message, "invalid_request_error", code, param, request.url.path), 400)


def _most_telling(found: Sequence[Any]) -> Any:
    """Of a union's complaints, the one that is not only about `"auto"`."""
    rest = [e for e in found if not (e["type"] == "literal_error" and e.get("ctx", {}).get("expected") == "'auto'")]
    return (rest or found)[0]


def _say(found: Any) -> str:
    """Value, limit and remedy of one pydantic complaint."""
    given = found.get("input")
    shown = repr(given) if isinstance(given, str | int | float | bool) else type(given).__name__
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    text = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        return f"unknown field{_suggest(str(found['loc'][-1]))}: remove it"
    if found["type"] == "missing":
        return "this field is required"
    if found["type"] == "value_error":
        return text
    return f"{text[:1].lower()}{text[1:]}, not {shown}"


def _suggest(name: str) -> str:
    from app.contracts.fine_tuning import FineTuningRequest
    from app.contracts.hyperparameters import Hyperparameters

    usual = {
        "epochs": "n_epochs",
        "num_train_epochs": "n_epochs",
        "lr": "learning_rate",
        "optimizer": "optim",
        "scheduler": "lr_scheduler_type",
        "warmup": "warmup_ratio",
        "gradient_clipping": "max_grad_norm",
        "label_smoothing": "label_smoothing_factor",
    }
    known = [*Hyperparameters.model_fields, *FineTuningRequest.model_fields]
    close = [usual[name]] if name in usual else difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


async def _http(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    kind = _HTTP_TYPES.get(exc.status_code, "invalid_request_error" if exc.status_code < 500 else "server_error")
    message, code = str(exc.detail), None
    if exc.status_code == 404:
        message, code = f"no route {request.method} {request.url.path}: GET /docs lists them", "unknown_route"
    elif exc.status_code == 405:
        message, code = f"{request.url.path} does not answer {request.method}", "method_not_allowed"
    return JSONResponse(envelope(message, kind, code, None, request.url.path), exc.status_code, exc.headers)


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    errors.ModelwrightError: _ours,
    errors.AlreadyCreated: _replay,
    OSError: _disk,
    RequestValidationError: _validation,
    HTTPException: _http,
}
