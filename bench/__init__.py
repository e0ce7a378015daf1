"""Load generators and comparisons. Solowire imports none of it; it knows only the outside contract."""
