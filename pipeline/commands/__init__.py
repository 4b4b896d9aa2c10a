"""The command groups `catalog` and `shards`."""
