"""A BIND 9 server itself: its configuration, its reloads, its status, its statistics."""
