"""The applications' domains, which register with the general core."""
