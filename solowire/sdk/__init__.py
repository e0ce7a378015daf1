"""The Python SDK: reading and publishing events."""
