"""The parts of the sources beside BIND 9, made of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from solowire.errors import ConfigError
from solowire.runtime.settings import Settings

if TYPE_CHECKING:
    from solowire.sources.agent.event_outlet import EventOutlet
    from solowire.sources.agent.source_runner import SourcePart


def make_forwarders_parts(settings: Settings, outlet: EventOutlet) -> Sequence[SourcePart]:
    """The part that probes forwarders. Raises ConfigError if none are named."""
    from solowire.sources.forwarders.forwarders_part import ForwardersPart

    forwarders = settings.source.forwarders
    if not forwarders.addresses and forwarders.named_conf is None:
        raise ConfigError(
            "no forwarders: name them with --forwarder 192.0.2.1, or named's configuration, which names them, with "
            "--named-conf /etc/bind/named.conf"
        )
    return [ForwardersPart(forwarders, outlet)]


def make_host_parts(settings: Settings, outlet: EventOutlet) -> Sequence[SourcePart]:
    """The part that measures this host."""
    from solowire.sources.host.host_part import HostPart

    return [HostPart(settings.source.host, outlet)]
