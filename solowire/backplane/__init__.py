"""Messages between the processes, and the transport that carries them."""
