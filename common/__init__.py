"""What the pipeline and the trainer share: records, shards, storage, codec, text encoder."""

from common.cores import set_up_openmp

# Here, because it comes before torch.
set_up_openmp()
