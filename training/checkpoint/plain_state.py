"""Reading a checkpoint's `state/` without running any code of it.

PyTorch's DCP writes the folder's description (`state/.metadata`) and every value that is not a
tensor as pickles, and unpickling can call any function.  Here the description may only name types
that describe tensors and files, and the values must be plain.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import _get_layout

from common.errors import AttuneError

_METADATA = ".metadata"
_DESCRIPTIONS = (
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
    "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
)  # fmt: skip
_KNOWN: dict[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
} | {(dcp_metadata.__name__, name): getattr(dcp_metadata, name) for name in _DESCRIPTIONS}
"""Types that the metadata may name, beside data types and the path it was written under."""


def load_state(state: dict[str, Any], folder: Path, no_dist: bool) -> None:
    """Read a checkpoint's `state/` into `state`, in place; every process must call this.

    Raises:
        AttuneError: reading it could run code.
        Exception, CheckpointException: DCP's errors about a damaged checkpoint.
    """
    reader, planner = _Reader(folder), _Planner(folder)
    try:
        dcp.load(state, storage_reader=reader, planner=planner, no_dist=no_dist)
    except (Exception, CheckpointException):
        # DCP hides the reader's error, and wraps the planner's in a report.
        if refusal := reader.refusal or planner.refusal:
            raise refusal from None
        raise


class _Reader(dcp.FileSystemReader):
    """A reader that only unpickles descriptions of tensors and files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.refusal: Exception | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / _METADATA
        if self.refusal is not None:  # DCP asks again, for metadata of single processes
            raise self.refusal
        try:
            with path.open("rb") as file:
                found = _Unpickler(file, path).load()
            if not isinstance(found, Metadata):
                raise AttuneError(
                    f"{path}: holds a {type(found).__name__}, expected DCP's metadata"
                )
        except Exception as error:
            self.refusal = error
            raise
        if found.storage_meta is None:
            found.storage_meta = StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get((module, name))
        if found is not None:
            return found
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "PurePosixPath"):
            return PurePosixPath
        raise AttuneError(
            f"{self._path}: names {module}.{name}, which no checkpoint of Attune does; reading it "
            "could run code"
        )


class _Planner(dcp.DefaultLoadPlanner):
    """Only accepts plain values beside tensors: numbers, text, lists of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.refusal: AttuneError | None = None

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            plain = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            name = read_item.dest_index.fqn
            self.refusal = AttuneError(
                f"{self._folder}: {name} is not a plain value; reading it could run code"
            )
            raise self.refusal from error
        # DCP unpickles without restrictions, so give it a pickle written here from plain values.
        again = io.BytesIO()
        torch.save(plain, again)
        again.seek(0)
        super().load_bytes(read_item, again)
