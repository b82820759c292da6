"""Any error becomes the record that the catalogue keeps: `{"code", "detail", "retryable", ...facts}`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from models.errors import ModelError
from storage.disk import DISK_FULL
from storage.errors import StorageError, StorageFull

NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")
"""What libraries say that raise no MemoryError."""


def cause_of(error: BaseException) -> BaseException:
    """The error that is worth telling: a source of cubes that failed is told by the store's own error, or by
    the memory that was lacking.
    """
    for cause in _causes(error):
        if isinstance(cause, StorageError) or _lacks_memory(cause):
            return cause
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return StorageFull(f"the disk is full ({error.strerror})")
    return error


def error_record(error: BaseException) -> dict[str, Any]:
    """What users may know. Errors that nobody foresaw tell nothing of our insides: the log has them."""
    if isinstance(error, StorageError | ModelError):
        facts = {name: _finite(value) for name, value in error.facts().items()}
        return {**facts, "code": error.code, "detail": str(error), "retryable": error.retryable}
    if _lacks_memory(error):
        detail = "the job ran out of memory; try it with smaller settings or on a larger worker"
        return {"code": "out-of-memory", "detail": detail, "retryable": False}
    detail = "the job broke off by an unexpected error; the worker's log has the details"
    return {"code": "internal-error", "detail": detail, "retryable": False}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and where it is a method's what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ if isinstance(cause, ModelError) else None


def _lacks_memory(error: BaseException) -> bool:
    """Whether memory was refused, in the interpreter's words or in a library's."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def _finite(value: Any) -> Any:
    """The value as finite JSON; what JSON cannot say becomes text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value)
