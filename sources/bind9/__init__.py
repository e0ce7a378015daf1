"""The BIND 9 source: events of what happens in a name server."""
