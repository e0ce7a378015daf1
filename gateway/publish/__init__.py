"""From the body of a publish request to events, within limits."""
