"""Leases: how many connections each shard may hold."""
