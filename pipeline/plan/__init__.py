"""Decide what becomes of every catalog row: a shard and a position, or a reason for refusal."""
