"""Which connections there is room for, and which have to go."""
