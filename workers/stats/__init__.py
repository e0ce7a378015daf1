"""What a shard says of itself."""
