"""Tokens, tickets, keys, claims and revocations."""
