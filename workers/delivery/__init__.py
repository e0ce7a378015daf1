"""What of the log goes to which sockets, and when."""
