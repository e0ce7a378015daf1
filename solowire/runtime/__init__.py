"""The runtime of every process: settings, signals, logs, its HTTP server, its files."""
