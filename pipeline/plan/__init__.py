"""Planning: each catalog row gets a shard and a position, or a reason for refusal."""
