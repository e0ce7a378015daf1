"""What the processes say to each other, and by which transport."""
