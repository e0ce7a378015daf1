"""Queries and answers as `named` tells them by dnstap, on a unix socket."""
