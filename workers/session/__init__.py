"""Sessions: handshakes, commands of clients, and their limits."""
