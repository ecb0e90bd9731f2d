"""What an exception becomes: a terminal event for the job, a place for the log.

Neither may carry what a user wrote, so of an error that is not one of our own only the
class is told.
"""

from __future__ import annotations

from forebay.core.events import Ended
from forebay.core.kinds import Kind, Row
from forebay.core.spec import JobSpec
from forebay.errors import EngineFailed, ForebayError

__all__ = ["failure", "out_of_time", "where"]


def failure(error: Exception, *, seq: int = 0) -> Ended:
    """The terminal event for ``error``. What is not one of our own errors is named by its
    class only: its text may hold what a user wrote."""
    if isinstance(error, ForebayError):
        return Ended(
            state="failed",
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            details=error.details,
            seq=seq,
        )
    name = type(error).__name__
    return Ended(state="failed", code=EngineFailed.code, message=f"engine raised {name}", seq=seq)


def where(error: BaseException) -> str:
    """File and line of the innermost frame: enough to find the fault, no content in it."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_code.co_filename.rpartition("/")[2]
    return f"{name}:{trace.tb_lineno}"


def out_of_time(spec: JobSpec, row: Row, seq: int) -> Ended:
    """The terminal event of a job whose run deadline has passed."""
    limit = spec.deadlines.run_s or row.run_s
    what = "run" if spec.kind is Kind.KERNEL else "model"
    return Ended(
        state="expired",
        code="deadline_exceeded",
        message=f"used its {limit:g} s of {what} time" if limit else "run deadline passed",
        retryable=True,
        details={"deadline": "run"},
        seq=seq,
    )
