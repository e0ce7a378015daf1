"""The zones of a BIND 9 server: each change of a record, exactly and once, from its zone transfers."""
