"""History: questions about what the log holds, answered beside it and never in its way."""
