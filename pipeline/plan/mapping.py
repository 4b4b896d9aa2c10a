"""Maps over independent items: in this process, or on Ray.

The results come back in the order of the items in both cases, so a plan does not depend on where,
or in how many pieces, it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from common.errors import AttuneError
from pipeline.ray_errors import describe, find_mistake

Item = TypeVar("Item")


Mapper = Callable[[Callable[[Any], Iterable[pa.Table]], Sequence[Any]], Iterator[pa.Table]]
"""Call `function` on each of `items` and give the tables in order."""


def map_here(
    function: Callable[[Item], Iterable[pa.Table]], items: Sequence[Item]
) -> Iterator[pa.Table]:
    """One item after the other, in this process."""
    for item in items:
        yield from function(item)


def map_on_ray(
    function: Callable[[Item], Iterable[pa.Table]], items: Sequence[Item]
) -> Iterator[pa.Table]:
    """As a Ray Data map on the running Ray: one task per item, on any node.

    Raises:
        AttuneError: raised by `function`, or a worker failed (names the cause).
    """
    import ray
    import ray.data

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    numbered = [{"item": [item]} for item in items]  # in a list: Ray would split a tuple

    def one(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for box in batch["item"]:
            for table in function(box[0]):
                # The whole table in one cell: Ray cuts and joins its own tables, and then their
                # dictionaries differ.
                yield {"table": [_to_bytes(table)]}

    data = ray.data.from_items(numbered, override_num_blocks=max(1, len(items)))
    try:
        for row in data.map_batches(one, batch_size=1).iter_rows():
            yield pa.ipc.open_stream(row["table"]).read_all()
    except ray.exceptions.RayError as error:
        mistake = find_mistake(error)
        if mistake is not None:
            raise mistake from None
        raise AttuneError(
            f"planning on Ray failed; see Ray's logs, then run again: {describe(error)}"
        ) from error


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
