"""One user's connections, from their first message to their end."""
