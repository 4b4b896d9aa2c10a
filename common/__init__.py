"""What the pipeline and the trainer share: records, shards, storage, codec, text encoder."""
