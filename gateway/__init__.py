"""The edge: HTTP API, tickets and relay. Stateless; any number of them."""
