"""Monitoring of the whole system: statistics and alerts."""
