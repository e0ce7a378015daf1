"""The command `solowire`. It imports everything, and nobody imports it."""
