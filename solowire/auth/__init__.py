"""Whom to believe: tokens, tickets, keys, claims and revocations."""
