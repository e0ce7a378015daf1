"""The edge: HTTP API, negotiation and relay. Stateless; any number of them."""
