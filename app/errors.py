"""Every error that a caller may meet, by class.

    ServiceError                    code: a stable slug; message: a sentence for a person
    ├── InvalidRequest              UnreadableImage  MaskMismatch  NoFaceFound  FaceNotChosen  TooLarge
    │                               UrlNotAllowed
    ├── NotFound                    UnknownCapability  UnknownJob  UnknownBatch  UnknownImage
    │                               UnknownModel
    ├── Conflict                    the state of the thing does not allow it
    ├── NotPermitted                the key may not do this
    ├── WeightsMissing              names the `eis models pull` line
    ├── Unavailable                 QueueFull  DependencyMissing  NoDevice  StorageFull  TransferFailed
    ├── OutOfMemory                 says what was tried and what to lower
    └── WorkerLost                  the process died; the job is tried again
    JobCancelled                    control flow, not a ServiceError

A message never holds a path of the server, a stack trace, a resolved address or the caller's own input at length.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class ServiceError(Exception):
    """The base of everything a caller may be told.

    `code` is stable across versions; `details` is a small JSON-able mapping for programs (a field's name, two sizes).
    """

    code: ClassVar[str] = "service_error"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, Any] = details


class InvalidRequest(ServiceError):
    """The wish is understood and not allowed, or cannot be understood."""

    code = "invalid_request"


class UnreadableImage(InvalidRequest):
    """The bytes are no picture of an allowed type, or a broken one."""

    code = "unreadable_image"


class MaskMismatch(InvalidRequest):
    """The mask and the picture differ in size; the message holds both sizes."""

    code = "mask_mismatch"


class NoFaceFound(InvalidRequest):
    """No face stands in a picture that must show one."""

    code = "no_face_found"


class FaceNotChosen(InvalidRequest):
    """Which face is meant is not said, or what says it fits none; the details list the boxes that were seen."""

    code = "face_not_chosen"


class TooLarge(InvalidRequest):
    """A body, a picture or a request exceeds a stated limit."""

    code = "too_large"


class UrlNotAllowed(InvalidRequest):
    """A URL that the guarded client does not fetch or call."""

    code = "url_not_allowed"


class NotFound(ServiceError):
    """No such thing, or not the caller's."""

    code = "not_found"


class UnknownCapability(NotFound):
    """No capability has this name."""

    code = "unknown_capability"


class UnknownJob(NotFound):
    """No job has this id."""

    code = "unknown_job"


class UnknownBatch(NotFound):
    """No batch has this id."""

    code = "unknown_batch"


class UnknownImage(NotFound):
    """No picture has this id."""

    code = "unknown_image"


class UnknownModel(NotFound):
    """No row of the model catalog has this id."""

    code = "unknown_model"


class Conflict(ServiceError):
    """The state of the thing does not allow the wish (a finished job cannot be cancelled)."""

    code = "conflict"


class NotPermitted(ServiceError):
    """The key is known, and may not change how the whole service runs (EIS_ADMIN_KEYS)."""

    code = "not_permitted"


class WeightsMissing(ServiceError):
    """The model is known and not installed; the message names the `eis models pull` line."""

    code = "weights_missing"


class Unavailable(ServiceError):
    """Not now: the caller may try again."""

    code = "unavailable"


class SearchOff(Unavailable):
    """The operator has named no provider for web searches."""

    code = "search_off"


class QueueFull(Unavailable):
    """As many jobs wait as the setting allows."""

    code = "queue_full"


class DependencyMissing(Unavailable):
    """An optional package is not installed; the message names the extra."""

    code = "dependency_missing"


class NoDevice(Unavailable):
    """No worker can take the job."""

    code = "no_device"


class StorageFull(Unavailable):
    """The disk has less room than the setting reserves."""

    code = "storage_full"


class TransferFailed(Unavailable):
    """A download from a hub or an image host failed after its retries."""

    code = "transfer_failed"


class OutOfMemory(ServiceError):
    """The device's memory did not suffice; the message says what was tried and what to lower."""

    code = "out_of_memory"


class WorkerLost(ServiceError):
    """The worker process died while it held the job."""

    code = "worker_lost"


class JobCancelled(Exception):
    """Raised inside a run at the next step after its job was cancelled; not an error."""


def error_class(code: str) -> type[ServiceError]:
    """The class whose `code` this is; ServiceError for a code of an unknown version."""
    pending = [ServiceError]
    while pending:
        candidate = pending.pop()
        if candidate.code == code:
            return candidate
        pending.extend(candidate.__subclasses__())
    return ServiceError
