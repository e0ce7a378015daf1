"""The gateway's public port: connections, requests, and WebSockets that are passed on."""
