"""The shard's client port: sockets and frames."""
