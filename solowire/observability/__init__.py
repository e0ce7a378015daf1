"""What the processes tell of themselves: metrics, statistics, the audit log."""
