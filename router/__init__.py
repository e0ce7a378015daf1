"""One process: the journal, membership and ring, dispatch to the shards."""
