"""Hugging Face models: fetched from the hub, loaded from a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.errors import AttuneError, one_line


def hub_snapshot(repository: str, patterns: Sequence[str]) -> Path:
    """A folder with these files of a repository; downloaded unless the hub's cache has them.

    Prints a line before it downloads, because that may take minutes and the hub's progress bars are
    off.

    Raises:
        huggingface_hub.errors.*, OSError: what the hub's client raises.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, "config.json"), str):
        print(f"fetching {repository} from the Hugging Face hub", file=sys.stderr, flush=True)
    return Path(snapshot_download(repository, allow_patterns=list(patterns)))


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Load without transformers' progress bars; its errors become one line that begins with `what`.

    Raises:
        AttuneError: the files cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise AttuneError(f"{what}: cannot load weights: {one_line(error)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()


def check_complete(missing: Iterable[str], where: str) -> None:
    """Refuse a model whose files lack weights, which would be random.

    Args:
        missing: names of the weights that the files lack and the model needs.

    Raises:
        AttuneError: there are any.
    """
    names = sorted(missing)
    if names:
        raise AttuneError(
            f"{where} lacks {len(names)} weights ({names[0]}, ...); config.json and weights do not "
            "belong together"
        )
