"""Forwarders out of named's configuration: those that it names, and an error or an answer for any text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.errors import ConfigError
from solowire.sources.agent.server_address import ServerAddress
from solowire.sources.forwarders.forwarder_list import (
    ForwarderListUnavailable,
    parse_forwarders,
    read_named_conf,
)
from solowire.sources.forwarders.named_forwarders import read_forwarders
from tests.support.requirements import need_program

PRINTED = """
options {
	directory "/tmp";
	forwarders port 5353 {
		192.0.2.1;
		192.0.2.2 port 54;
		2001:db8::1;
	};
};
view "in{;side" {
	match-clients {
		"any";
	};
	zone "corp.example" {
		type forward;
		forwarders {
			10.0.0.2;
			10.0.0.1;
		};
	};
	zone "empty.example" {
		type forward;
		forwarders {
		};
	};
	forwarders {
		10.0.0.1 dscp 4;
	};
};
zone "forwarders" {
	type forward;
	forwarders {
		10.0.0.1;
		192.0.2.9 tls "private";
	};
};
"""


def test_all_places_are_found() -> None:
    """Those of the server, of views and of zones, with the block's port or their own, each address once."""
    found = read_forwarders(PRINTED)
    told = {str(each.address): (each.views, each.zones) for each in found.forwarders}
    assert told == {
        "192.0.2.1#5353": ([], []),
        "192.0.2.2#54": ([], []),
        "2001:db8::1#5353": ([], []),
        "10.0.0.2#53": (["in{;side"], ["corp.example"]),
        "10.0.0.1#53": (["in{;side"], ["corp.example", "forwarders"]),
    }
    assert found.left_out == ["192.0.2.9 tls private"]


@pytest.mark.parametrize(
    "text",
    ["};", "options { forwarders {", "forwarders { x; };", "forwarders port 0 { ::1; };", "forwarders { ::1 port; };"],
)
def test_what_is_no_configuration_is_an_error(text: str) -> None:
    """Its text says what is wrong."""
    with pytest.raises(ConfigError):
        read_forwarders(text)


@given(st.text() | st.lists(st.sampled_from([*PRINTED.split(), '"', "\\", "port", "tls"])).map(" ".join))
def test_any_text_gives_forwarders_or_an_error(text: str) -> None:
    """And nothing else."""
    try:
        found = read_forwarders(text)
    except ConfigError:
        return
    assert len({each.address for each in found.forwarders}) == len(found.forwarders)


async def test_a_real_configuration_is_read(tmp_path: Path) -> None:
    """By named-checkconf, with what it includes; its faults are told with their place."""
    need_program("named-checkconf")
    included = tmp_path / "forwarders.conf"
    included.write_text("forwarders { 192.0.2.1; 192.0.2.2 port 5353; };\n")
    conf = tmp_path / "named.conf"
    conf.write_text(f'options {{ directory "{tmp_path}"; include "{included}"; }};\n')
    found = await read_named_conf(conf)
    assert [each.address for each in found.forwarders] == [
        ServerAddress("192.0.2.1", 53),
        ServerAddress("192.0.2.2", 5353),
    ]
    included.write_text("forwarders { 192.0.2.1; }\n")
    with pytest.raises(ForwarderListUnavailable, match="missing ';'"):
        await read_named_conf(conf)
    with pytest.raises(ForwarderListUnavailable, match="nowhere"):
        await read_named_conf(tmp_path / "nowhere.conf")


def test_forwarders_that_are_named_one_by_one() -> None:
    """With a port or without; each once."""
    told = parse_forwarders(["192.0.2.1", "192.0.2.1#53", "::1#5353"], "--forwarder")
    assert [str(each.address) for each in told] == ["192.0.2.1#53", "::1#5353"]
    with pytest.raises(ConfigError, match="--forwarder"):
        parse_forwarders(["dns.example"], "--forwarder")
