"""Solowire: one live WebSocket per user, whatever the number of tabs, panels and event types.

This package holds what all processes share. Its modules do no I/O, read no clock and know no socket, except `settings`,
`roles`, `bus`, `link`, `metrics`, `serving`, `logs`, `process`, `supervisor`, the SDK (`client`, `publisher`) and the
command line (`cli`, `tailing`, `statistics`). The roles live beside it: `gateway` (the edge), `router` (the log, the
ring, dispatch), `workers` (the shards), `sources` (the agents).
"""

__version__ = "0.1.0"
