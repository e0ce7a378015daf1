"""Whatever a source needs beside what it watches: its parts, its way to the gateway, its state."""
