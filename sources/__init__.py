"""Agents that turn real systems into events."""
