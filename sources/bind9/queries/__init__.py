"""The queries that a server gets: from its query log, or by dnstap."""
