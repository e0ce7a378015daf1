"""The host source: the load of the machine, or container, that a name server runs on."""
