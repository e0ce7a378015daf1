"""Admission of connections at the gateway, by rates, limits and client address."""
