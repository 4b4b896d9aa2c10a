"""Assign shards to codec actors; a failure counts only for the shard that caused it.

An actor encodes several shards at once, so its codec has work while one shard ends.  When its
process dies, all of them fail with the same error, and Ray does not say which one was the cause:

    actor 1 has shards 7 and 8; a file in 8 crashes the decoder, the process dies
    7 fails, 8 fails             neither is blamed; both wait to be tried alone
    7 alone on an idle actor     committed: it was not the cause
    8 alone on an idle actor     the process dies again: the first attempt that counts for 8
    8 alone, twice more          dies each time: marked as failed ("poison"), the run continues

So a failed attempt counts for a shard in two cases: the process died while this was its only shard,
or the call itself raised an exception (the process lives, so Ray knows which shard it was).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from common.errors import AttuneError
from common.storage import StorageError, Store
from pipeline.datadir.commit import canonical_json, poison_key
from pipeline.encode.worker import SHARDS_AT_ONCE
from pipeline.ray_errors import describe, find_mistake, of_the_call

_START_DEATHS = 20
"""Number of deaths in a row during start-up that a run survives while no worker runs.  `run` adds
the number of workers to this limit."""


class Task(NamedTuple):
    """A shard to encode: its number and its rows of `plan.parquet`."""

    shard: int
    rows: pa.Table


@dataclass(eq=False)
class _Worker:
    """A codec actor, and the shards that it encodes now."""

    actor: Any
    tasks: set[int] = field(default_factory=set)
    alone: bool = False
    """Whether it has a shard that must run alone."""
    is_dead: bool = False


class Dispatch:
    """Encodes every shard until it is committed or has failed on every attempt.

    Args:
        start_actor: makes a new `EncodeWorker` actor.
        store: where `poison/NNNNNN.json` is written for failed shards.
        attempts: number of failures that count, after which a shard is marked as failed ("poison").
        on_done: called with the result of `EncodeWorker.encode_shard` for each shard.
        on_tick: called about once a second.
    """

    def __init__(
        self,
        start_actor: Callable[[], Any],
        store: Store,
        attempts: int,
        on_done: Callable[[dict[str, Any]], None],
        on_tick: Callable[[], None],
    ) -> None:
        self._start_actor, self._store, self._attempts = start_actor, store, attempts
        self._on_done, self._on_tick = on_done, on_tick
        # An actor gets shards only after its `is_ready` has returned.  So no shard waits for an
        # actor that cannot start because its node is lost.
        self._starting: dict[Any, _Worker] = {}
        self._workers: list[_Worker] = []
        self._running: dict[Any, tuple[_Worker, Task]] = {}
        self._again: deque[Task] = deque()
        self._failures: dict[int, list[str]] = {}
        self._start_deaths = 0
        self._most_start_deaths = _START_DEATHS
        self.poison: dict[int, str] = {}
        """Shards that failed on every attempt, each with its last error."""

    def run(self, tasks: Iterator[Task], workers: int) -> dict[int, str]:
        """Run until every shard is committed or has failed on every attempt.

        Returns:
            The shards that failed on every attempt, each with its last error.

        Raises:
            AttuneError: an error that would happen on every attempt (a node has another codec), a
                store that failed on every attempt, or all workers died during start-up.
        """
        import ray

        # If a node is lost, all workers can die at once.  A higher limit allows this one time.
        self._most_start_deaths = _START_DEATHS + workers
        for _ in range(workers):
            self._start()
        fresh = next(tasks, None)
        while fresh is not None or self._again or self._running:
            while (worker := self._free()) is not None:
                if self._again:
                    self._give(worker, self._again.popleft(), alone=True)
                elif fresh is not None:
                    self._give(worker, fresh)
                    fresh = next(tasks, None)
                else:
                    break
            waiting = [*self._running, *self._starting]
            done, _ = ray.wait(waiting, num_returns=1, timeout=1.0)
            self._on_tick()
            for reference in done:
                if reference in self._starting:
                    self._started(reference)
                else:
                    self._finished(reference)
        return self.poison

    def _start(self) -> None:
        worker = _Worker(self._start_actor())
        self._starting[worker.actor.is_ready.remote()] = worker

    def _free(self) -> _Worker | None:
        """The worker that gets the next shard: the one with the fewest shards.

        A shard that must run alone needs a worker without shards.  While such a shard waits, no
        worker gets a second shard.  Otherwise no worker would ever become idle.
        """
        most = 0 if self._again else SHARDS_AT_ONCE - 1
        free = [w for w in self._workers if len(w.tasks) <= most and not w.alone]
        return min(free, key=lambda worker: len(worker.tasks), default=None)

    def _give(self, worker: _Worker, task: Task, alone: bool = False) -> None:
        worker.tasks.add(task.shard)
        worker.alone = alone
        self._running[worker.actor.encode_shard.remote(*task)] = worker, task

    def _started(self, reference: Any) -> None:
        import ray

        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self._start_deaths += 1
            if self._start_deaths > self._most_start_deaths and not self._workers:
                raise AttuneError(
                    f"codec workers crashed at start-up ({describe(error)}); see Ray's logs, then "
                    "run again"
                ) from error
            self._start()
        else:
            self._start_deaths = 0
            self._workers.append(worker)

    def _finished(self, reference: Any) -> None:
        import ray

        worker, task = self._running.pop(reference)
        # Ray reports the shards of a dead worker one after the other.  The last one is the only one
        # left in `tasks`, but it was not the only one when the worker died.
        was_alone = worker.alone or (len(worker.tasks) == 1 and not worker.is_dead)
        worker.tasks.discard(task.shard)
        worker.alone = False
        try:
            account = ray.get(reference)
        except ray.exceptions.RayError as error:
            died = not isinstance(error, of_the_call())
            if died and not worker.is_dead:
                worker.is_dead = True
                self._workers.remove(worker)
                self._start()
            self._failed(task, error, counts=was_alone or not died)
        else:
            if task.shard in self._failures:
                self._store.delete(poison_key(task.shard))
            self._on_done(account)

    def _failed(self, task: Task, error: Exception, counts: bool) -> None:
        cause = find_mistake(error)
        if cause is not None and not isinstance(cause, StorageError):
            raise cause from None  # would be the same on every attempt
        errors = self._failures.setdefault(task.shard, [])
        if counts:
            errors.append(describe(error))
        if len(errors) < self._attempts:
            self._again.append(task)
        elif cause is not None:
            raise cause from None
        else:
            self.poison[task.shard] = errors[-1]
            document = {"shard": task.shard, "errors": errors}
            self._store.write(poison_key(task.shard), canonical_json(document))
