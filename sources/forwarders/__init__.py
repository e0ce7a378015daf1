"""The forwarders source: probes of the servers to which a name server forwards."""
