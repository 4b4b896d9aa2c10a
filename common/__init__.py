"""Shared by pipeline and training: records, shards, storage, codec, text encoder."""

from common.cores import set_up_openmp

# Here, because it must run before torch is imported.
set_up_openmp()
