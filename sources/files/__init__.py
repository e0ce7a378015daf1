"""A log file that grows and is rotated: each line once, over kills too."""
