"""What every process does alike: settings, signals, logs, its HTTP server, its files."""
