"""`python -m training weights`: download the backbones of the metrics.

Downloads are not trusted: only tensors are read from `.pth` and `.pt` files, and CLAP's weights are
stored as safetensors.  The metric card has the hash of each file of weights.
"""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from common.errors import AttuneError, one_line
from common.uris import cache_folder
from training.evaluation.metrics.backbones.backbone import MissingBackbone, load_state
from training.run.files import as_any_file

TIMEOUT_S = 30
_GITHUB = "https://github.com"
_VGGISH = "vggish-10086976.pth"
_PASST = f"{_GITHUB}/kkoutini/PaSST/releases/download"


@dataclass(frozen=True)
class Source:
    """Weights to download."""

    name: str
    url: str
    """Address of a file, or `hub:OWNER/NAME`."""

    @property
    def file(self) -> str:
        """File or folder name on disk."""
        return self.url.rsplit("/", 1)[1]


SOURCES = (
    Source("vggish", f"{_GITHUB}/harritaylor/torchvggish/releases/download/v0.1/{_VGGISH}"),
    Source("passt-10s", f"{_PASST}/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt"),
    Source("passt-20s", f"{_PASST}/v0.0.5/passt-s-f128-20sec-p16-s10-ap.474-swa.pt"),
    Source("clap", "hub:laion/clap-htsat-fused"),
)


def default_weights() -> Path:
    """`weights` in the cache folder."""
    return cache_folder() / "weights"


def fetch_all(
    folder: Path, sources: tuple[Source, ...], report: Callable[[str], None]
) -> list[str]:
    """Download the sources that are not on disk, with one line for each.

    Returns:
        Names of the sources that failed.

    Raises:
        AttuneError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AttuneError(f"{folder}: {error.strerror}; name another with --weights") from error
    failed = []
    for source in sources:
        target = folder / source.file
        try:
            if target.exists():
                report(f"{source.name}: is there, {target}")
            else:
                fetch(source, target)
                report(f"{source.name}: fetched, {target}")
        except AttuneError as error:
            failed.append(source.name)
            report(str(error))
    return failed


def fetch(source: Source, target: Path) -> None:
    """Download one source; `target` appears complete or not at all.

    Raises:
        AttuneError: no network, no such file, or the file has no weights; in one line.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        print(f"{source.name}: fetching {source.url}", file=sys.stderr, flush=True)
        if source.url.startswith("hub:"):
            _from_hub(source.url.removeprefix("hub:"), partial)
        else:
            request = urllib.request.urlopen(source.url, timeout=TIMEOUT_S)
            with request as answer, partial.open("wb") as file:
                shutil.copyfileobj(answer, file)
            load_state(source.name, partial)
        os.replace(partial, target)
    except MissingBackbone as error:
        raise AttuneError(
            f"{source.name}: the file at {source.url} is incomplete or has no weights; try again"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = one_line(error) or type(error).__name__
        raise AttuneError(
            f"{source.name}: cannot be fetched from {source.url} ({reason}); put it at {target}"
        ) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _from_hub(repository: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from safetensors.torch import save_file

    try:
        wanted = ["*.json", "merges.txt", "model.safetensors"]
        snapshot_download(repository, local_dir=folder, allow_patterns=wanted)
        if not (folder / "model.safetensors").is_file():
            snapshot_download(repository, local_dir=folder, allow_patterns=["pytorch_model.bin"])
    except Exception as error:  # the hub's client raises errors of many libraries
        raise OSError(f"{type(error).__name__}: {error}") from error
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file():
        state = load_state("clap", pickled)
        # Copies, because safetensors refuses tensors that share memory.
        save_file(
            {key: value.clone().contiguous() for key, value in state.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        as_any_file(folder / "model.safetensors")
        pickled.unlink()
