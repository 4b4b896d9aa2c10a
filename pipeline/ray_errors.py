"""Ray's exceptions: find the cause, and describe it in one line."""

from __future__ import annotations

from common.errors import AttuneError


def find_mistake(error: BaseException | None) -> AttuneError | None:
    """The `AttuneError` that a worker raised, out of Ray's exceptions around it."""
    for _ in range(10):
        if isinstance(error, AttuneError) and type(error).__module__.startswith("common"):
            return error
        error = getattr(error, "cause", None) or getattr(error, "__cause__", None)
    return None


def of_the_call() -> tuple[type[Exception], ...]:
    """Ray's errors after which the worker is still alive; after any other it counts as dead.

    A live worker that is counted as dead stops after its calls, because nothing refers to it.  A
    dead worker that is counted as alive would be idle, get every shard, and fail each one at once.
    """
    from ray import exceptions

    return (
        exceptions.RayTaskError,  # raised by the task itself
        exceptions.UnserializableException,  # raised by the task; its class is not importable here
        exceptions.TaskCancelledError,
        exceptions.GetTimeoutError,
        exceptions.ObjectStoreFullError,
        exceptions.OutOfDiskError,
    )


def describe(error: Exception) -> str:
    """Format a worker's error as one line."""
    cause = getattr(error, "cause", None) or error
    first, *_ = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {first.strip()[:200]}"
