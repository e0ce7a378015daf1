"""Who may connect now, and whose connection it is."""
