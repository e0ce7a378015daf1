"""Events, the catalogue of their types, subscriptions, and who may see what."""
