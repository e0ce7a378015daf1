"""The protocol between a client and its shard."""
