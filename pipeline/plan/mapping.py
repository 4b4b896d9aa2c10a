"""Maps over independent items: in this process, or on Ray.

What the items give comes back in their order either way, so a plan does not depend on where, or in
how many pieces, it was worked out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from pipeline.ray_errors import find_mistake

Item = TypeVar("Item")


class Mapper(Protocol):
    """`function` over `items`: the tables that each item gives, in order."""

    def __call__(
        self, function: Callable[[Item], Iterable[pa.Table]], items: Sequence[Item]
    ) -> Iterator[pa.Table]: ...


def map_here(
    function: Callable[[Item], Iterable[pa.Table]], items: Sequence[Item]
) -> Iterator[pa.Table]:
    """One item after the other, in this process."""
    for item in items:
        yield from function(item)


def map_on_ray(
    function: Callable[[Item], Iterable[pa.Table]], items: Sequence[Item]
) -> Iterator[pa.Table]:
    """As a Ray Data map over the running Ray: a task per item, on any node.

    Raises:
        AttuneError: what `function` raised; Ray's own errors pass through.
    """
    import ray
    import ray.data

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    numbered = [{"item": [item]} for item in items]  # boxed: Ray would take a sequence apart

    def one(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for box in batch["item"]:
            for table in function(box[0]):
                # A table in a cell: Ray may cut and join blocks, and dictionaries with them.
                yield {"table": [_to_bytes(table)]}

    data = ray.data.from_items(numbered, override_num_blocks=max(1, len(items)))
    try:
        for row in data.map_batches(one, batch_size=1).iter_rows():
            yield pa.ipc.open_stream(row["table"]).read_all()
    except ray.exceptions.RayError as error:
        mistake = find_mistake(error)
        if mistake is not None:
            raise mistake from None
        raise


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
