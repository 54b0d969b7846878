"""The errors a caller may cause or meet. They carry a code and a message; only `app.api.errors` knows statuses.

ModelwrightError
├── InvalidRequest      the caller must change the request
│   └── FileRejected    the file's bytes are at fault; the message names the line
├── Unauthenticated     no key, or one that does not work
├── PermissionDenied    the key lacks the scope
├── NotFound            no such object
├── Overloaded          try again in `retry_after` seconds
├── DeadlineExceeded    the answer would have come too late
└── Unavailable         a server or worker we need is away
"""


class ModelwrightError(Exception):
    """Base of all; `code` is the wire code, `param` the path of the field at fault."""

    default_code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param


class InvalidRequest(ModelwrightError):
    default_code = "invalid_request"


class FileRejected(InvalidRequest):
    default_code = "invalid_file"


class Unauthenticated(ModelwrightError):
    default_code = "invalid_api_key"


class PermissionDenied(ModelwrightError):
    default_code = "insufficient_scope"


class NotFound(ModelwrightError):
    default_code = "not_found"


class Overloaded(ModelwrightError):
    default_code = "queue_full"
    retry_after = 1


class DeadlineExceeded(ModelwrightError):
    default_code = "deadline_exceeded"
    retry_after = 1


class Unavailable(ModelwrightError):
    default_code = "unavailable"
    retry_after = 2
