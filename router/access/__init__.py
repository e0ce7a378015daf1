"""Revocations and disconnects of users."""
