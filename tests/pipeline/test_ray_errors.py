"""What a worker raised, out of the texts and classes in which Ray brings it."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayTaskError, UserCodeException

from common.errors import AttuneError
from pipeline.ray_errors import describe, find_mistake

FRAMES = """\
\x1b[36mray::MapWorker(MapBatches(EmbedChunks)).submit()\x1b[39m (pid=7, ip=10.0.0.2)
  File "/usr/lib/python3.11/concurrent/futures/thread.py", line 58, in run
    result = self.fn(*self.args, **self.kwargs)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/a/pipeline/encode/embed.py", line 75, in __call__
    self.cache.write_chunk(str(name), prompts, self.encoder.encode(prompts))
"""
RETRIES = """
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, configure `ray.data.DataContext.get_current()`"""


def of_ray_data(raised: str) -> RayTaskError:
    """The error of an actor of Ray Data: only its text has what the actor raised."""
    cause = UserCodeException(f"UDF failed to process a data block.{RETRIES}")
    text = (
        f"{FRAMES}{raised}\n\nThe above exception was the direct cause of the following "
        f"exception:\n\n\x1b[36mray::MapWorker()\x1b[39m (pid=7)\nray.exceptions.{cause!r}{RETRIES}"
    )
    return RayTaskError("f", text, cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (of_ray_data("ValueError: of layer 3"), "ValueError: of layer 3"),
        (of_ray_data("torch.cuda.OutOfMemoryError: no\nroom"), "OutOfMemoryError: no room"),
        (of_ray_data("AssertionError"), "AssertionError:"),
        (RayTaskError("f", FRAMES, ValueError("a\nb")).as_instanceof_cause(), "ValueError: a b"),
        (RayTaskError("f", FRAMES, KeyError(f"x{RETRIES}")), "KeyError: 'x"),
        (
            ActorDiedError(RayTaskError("f", f"{FRAMES}OSError: full", OSError("full"))),
            "OSError: full",
        ),
        (ActorDiedError(), f"ActorDiedError: {ActorDiedError()}".partition("\n")[0]),
    ],
)
def test_an_error_ends_with_its_cause(error: Exception, line: str) -> None:
    assert describe(error).strip() == line
    assert find_mistake(error) is None


def test_a_mistake_is_found_where_only_its_traceback_came_back() -> None:
    lost = find_mistake(of_ray_data("common.errors.AttuneError: another encoder; give all one"))
    assert isinstance(lost, AttuneError) and str(lost) == "another encoder; give all one"
    kept = find_mistake(RayTaskError("f", FRAMES, AttuneError(f"no such list{RETRIES}")))
    assert isinstance(kept, AttuneError) and str(kept) == "no such list"
