"""What the applications' domains register with the general core."""
