"""Models from the Hugging Face hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def hub_snapshot(repository: str, patterns: Sequence[str]) -> Path:
    """A folder with these files of a repository, from the hub's cache where they are.

    Says so before it downloads: that may take minutes, and bars of the hub's own are off.

    Raises:
        huggingface_hub.errors.*, OSError: what the hub's client raises.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, "config.json"), str):
        print(f"fetching {repository} from the Hugging Face hub", file=sys.stderr, flush=True)
    return Path(snapshot_download(repository, allow_patterns=list(patterns)))
