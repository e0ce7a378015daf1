"""What a client says, and what comes of it."""
