"""The errors a caller may cause or meet. They carry a code and a message; only `app.api.errors` knows statuses.

ModelwrightError
├── InvalidRequest      the caller must change the request
│   └── FileRejected    the file's bytes are at fault; the message names the line
├── Unauthenticated     no key, or one that does not work
├── PermissionDenied    the key lacks the scope
├── NotFound            no such object
├── IdempotencyKeyReused  the Idempotency-Key stands for another body
├── CreationInProgress  an equal creating call has not ended
├── Overloaded          try again in `retry_after` seconds
├── QuotaExceeded       the key has all that it may have
│   └── StorageQuotaExceeded  and time alone mends nothing
├── DeadlineExceeded    the answer would have come too late
├── StorageFull         no room left for what the caller sends
└── Unavailable         a server or worker we need is away

AlreadyCreated          no error: the answer of an earlier call is the answer
"""


class ModelwrightError(Exception):
    """Base of all; `code` is the wire code, `param` the path of the field at fault."""

    default_code = "internal_error"
    retry_after: int | None = None
    should_retry: bool | None = None
    """Overrules what clients conclude from the status; None leaves it to them."""

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


class IdempotencyKeyReused(ModelwrightError):
    default_code = "idempotency_key_reused"


class CreationInProgress(ModelwrightError):
    default_code = "idempotency_in_progress"
    retry_after = 1
    should_retry = True


class Overloaded(ModelwrightError):
    default_code = "queue_full"
    retry_after = 1


class QuotaExceeded(ModelwrightError):
    default_code = "quota_exceeded"
    retry_after: int | None = 60


class StorageQuotaExceeded(QuotaExceeded):
    retry_after = None
    should_retry = False


class DeadlineExceeded(ModelwrightError):
    default_code = "deadline_exceeded"
    retry_after = 1


class StorageFull(ModelwrightError):
    default_code = "storage_full"
    retry_after = 60


class Unavailable(ModelwrightError):
    default_code = "unavailable"
    retry_after = 2


class AlreadyCreated(Exception):
    """Ends a creating call that was answered before; `answer` is the body of that answer."""

    def __init__(self, answer: str) -> None:
        super().__init__("answered before")
        self.answer = answer
