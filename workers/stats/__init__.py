"""Statistics of a shard."""
