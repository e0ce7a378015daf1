"""The capacity of a shard: its lease, its slots, and who has to go."""
