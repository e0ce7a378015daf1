"""The shards: each owns its users' single connections and the recent log they read from."""
