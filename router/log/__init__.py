"""The router's log: kept, read again, and sent on to each shard."""
