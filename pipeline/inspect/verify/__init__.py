"""`shards verify`: does every byte that a reader will trust say what it should?

Plan, commits, tars, samples and manifest are checked against each other; every problem names its
file and, where there is one, the sample.  Nothing is changed.

`deep` goes on to what no reader needs to trust, but people and other tools do: every column of the
manifest, the types of its columns, `shards.json`, `quarantine.parquet`, the totals in
`summary.json`, each record against its plan row, each member's tar header, and the text states
against the text cache, where that still holds them.

Of the tables only the sample ids are held whole; all else goes shard by shard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.errors import AttuneError
from common.shards import read_summary
from common.storage import Store
from pipeline.datadir.frozen_plan import load_plan
from pipeline.inspect.verify.check import Check
from pipeline.inspect.verify.deep import DeepCheck


def verify_shards(
    store: Store, deep: bool = False, tell: Callable[[int, int], object] | None = None
) -> dict[str, Any]:
    """Check a finished run.

    Args:
        tell: called with the number of shards looked at, and of all.

    Returns:
        shards, samples (numbers checked), problems (where, sample_id, problem), and orphans: tars
        that no commit names, which are harmless.  With `deep` also states: samples whose text
        states were compared with the cache.

    Raises:
        AttuneError: there is no finished run to check.
    """
    plan = load_plan(store)
    if plan is None:
        raise AttuneError(f"{store.uri}: no plan there; run `python -m pipeline run` first")
    try:
        summary = read_summary(store)
    except AttuneError:
        if not store.exists("summary.json"):
            raise
        summary = {}
    return (DeepCheck if deep else Check)(store, plan, summary, tell).run()
