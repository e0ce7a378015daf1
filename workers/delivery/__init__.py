"""Delivery of the log to sockets."""
