"""Ray's exceptions: find the cause, and describe it in one line."""

from __future__ import annotations

import re

from common.errors import AttuneError, one_line

_LAST_LINE = re.compile(r"^ .*\n([A-Za-z_][\w.]*)(?:: ((?:.+\n?)*))?$", re.MULTILINE)
"""What a traceback ends with, after its indented lines: `ValueError: text`."""
_RETRIES = re.compile(r"(?:\n|\\n)Failed to .* after \d+/\d+ attempts.*", re.DOTALL)
"""What Ray Data appends to the text of every error."""


def find_mistake(error: BaseException | None) -> AttuneError | None:
    """The `AttuneError` that a worker raised, out of Ray's exceptions around it."""
    name, text = _raised(str(error))
    for _ in range(10):
        if isinstance(error, AttuneError) and type(error).__module__.startswith("common"):
            error.args = (_RETRIES.sub("", str(error)),)
            return error
        error = getattr(error, "cause", None) or getattr(error, "__cause__", None)
    # An actor of Ray Data loses the exception, and only its traceback comes back.
    is_ours = name == f"{AttuneError.__module__}.{AttuneError.__name__}"
    return AttuneError(text) if is_ours else None


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
    """Format a worker's error as one line: what the worker raised, if Ray knows it."""
    cause = getattr(error, "cause", None) or error
    name, text = type(cause).__name__, _RETRIES.sub("", str(cause))
    if type(cause).__module__.startswith("ray."):  # Ray's own, which may quote a traceback
        raised, message = _raised(str(error))
        name, text = (raised.rpartition(".")[2], message) if raised else (name, _first_line(text))
    return f"{name}: {one_line(text)}"


def _raised(traceback: str) -> tuple[str, str]:
    """Class and text of the exception that a worker's traceback ends with; empty without one."""
    *_, (name, text) = [("", ""), *_LAST_LINE.findall(traceback)]
    return name, _RETRIES.sub("", text).strip()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
