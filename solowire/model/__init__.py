"""What Solowire is about: events, the catalogue of their types, subscriptions, and who may see what."""
