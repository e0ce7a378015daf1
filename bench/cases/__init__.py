"""The cases, in the order in which they stand in docs/performance.md. Each takes a Length and returns a Case."""
