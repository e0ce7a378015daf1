"""Metrics, statistics and the audit log."""
