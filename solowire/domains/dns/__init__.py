"""The domain of DNS administration: its event types and what they mean."""
