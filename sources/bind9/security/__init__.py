"""Findings that someone responsible for security should look at."""
