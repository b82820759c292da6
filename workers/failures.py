"""Any error becomes the record that the catalogue keeps: `{"code", "detail", "retryable", ...facts}`."""

from __future__ import annotations

import math
from typing import Any

from models.errors import ModelError
from storage.disk import DISK_FULL
from storage.errors import StorageError, StorageFull


def cause_of(error: BaseException) -> BaseException:
    """The error that is worth telling: a source of cubes that failed is told by the store's own error."""
    if isinstance(error, ModelError) and isinstance(error.__cause__, StorageError):
        return error.__cause__
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return StorageFull(f"the disk is full ({error.strerror})")
    return error


def error_record(error: BaseException) -> dict[str, Any]:
    """What users may know. Errors that nobody foresaw tell nothing of our insides: the log has them."""
    if isinstance(error, StorageError | ModelError):
        facts = {name: _finite(value) for name, value in error.facts().items()}
        return {**facts, "code": error.code, "detail": str(error), "retryable": error.retryable}
    if isinstance(error, MemoryError):
        detail = "the job ran out of memory; try it with smaller settings or on a larger worker"
        return {"code": "out-of-memory", "detail": detail, "retryable": False}
    detail = "the job broke off by an unexpected error; the worker's log has the details"
    return {"code": "internal-error", "detail": detail, "retryable": False}


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
