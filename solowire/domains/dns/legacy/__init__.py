"""The protocol of the DNS application's old frontend: five sockets' worth of frames out of one stream of events."""
