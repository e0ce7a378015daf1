"""What goes over the wire between a client and its shard."""
