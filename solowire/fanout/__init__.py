"""From one log to many readers: the recent log, feeds, frames, and what a reader that is behind gets."""
