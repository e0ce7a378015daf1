"""Which shard may hold how many connections."""
