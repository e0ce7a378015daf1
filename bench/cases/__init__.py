"""The cases; `bench.__main__` says on which page each stands."""
