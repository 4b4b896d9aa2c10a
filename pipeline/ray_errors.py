"""What an exception from Ray says, in one line for a person."""

from __future__ import annotations

from common.errors import AttuneError


def find_mistake(error: BaseException | None) -> AttuneError | None:
    """The `AttuneError` that a worker raised, from under Ray's wrapping."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, AttuneError) and type(error).__module__.startswith("common"):
            return error
        error = getattr(error, "cause", None) or error.__cause__
        seen += 1
    return None


def of_the_call() -> tuple[type[Exception], ...]:
    """Ray's errors that leave the worker standing; after any other one it counts as dead.

    A worker that is taken for dead and is not ends once its calls have: nobody holds it any more.
    One that is dead and is not known for it would fail every shard at once, always free for more.
    """
    from ray import exceptions

    return (
        exceptions.RayTaskError,  # raised by the task itself
        exceptions.UnserializableException,  # so was this, of a kind that the driver lacks
        exceptions.TaskCancelledError,
        exceptions.GetTimeoutError,
        exceptions.ObjectStoreFullError,
        exceptions.OutOfDiskError,
    )


def describe(error: Exception) -> str:
    """A worker's error in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:200] if lines else ''}"
