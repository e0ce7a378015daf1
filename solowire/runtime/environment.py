"""Variables of the environment that are meant for Solowire, and those that only look so.

Kubernetes tells every pod of every service in its namespace, by variables that begin with the service's name. So of a
service `solowire-gateway` come SOLOWIRE_GATEWAY_SERVICE_HOST and SOLOWIRE_GATEWAY_PORT=tcp://10.96.3.4:8000, and of
one called `solowire` comes SOLOWIRE_PORT=tcp://…, in the place of a setting.
Source: Kubernetes, "Service", section "Discovering services, environment variables"; Docker's links had the same form.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from solowire.algorithms.name_suggestion import find_match

_PROTOCOLS = "TCP|UDP|SCTP"
_LINK_NAME = re.compile(
    rf"(.+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_({_PROTOCOLS})(_(PROTO|PORT|ADDR))?)", re.ASCII
)
_PORT_NAME = re.compile(r"(.+_)?PORT")
_LINK_VALUE = re.compile(rf"({_PROTOCOLS.lower()})://(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):\d+")


def is_service_link(name: str, value: str | None) -> bool:
    """Whether Kubernetes has set the variable to say where a service is. name: without the prefix of ours."""
    name = name.upper()
    if _LINK_NAME.fullmatch(name):
        return True
    return bool(_PORT_NAME.fullmatch(name) and _LINK_VALUE.fullmatch(value or ""))


def find_unknown(
    variables: Mapping[str, str | None],
    prefix: str,
    known: Collection[str],
    *,
    renamed: Mapping[str, str],
    similar: Mapping[str, str],
) -> list[str]:
    """One text for each variable with the prefix that is no setting. known: the settings' variables.

    renamed: variables that were settings once, and what they are called now. similar: what else may be written for one.
    """
    candidates = {**similar, **renamed, **{name: name for name in known}}
    faults = []
    for name, value in variables.items():
        upper = name.upper()
        if not upper.startswith(prefix) or upper in known or is_service_link(name[len(prefix) :], value):
            continue
        if upper in renamed:
            faults.append(f"{name} is called {renamed[upper]} now")
            continue
        meant = find_match(upper, candidates)
        way_out = f"did you mean {candidates[meant]}?" if meant else "`solowire config` lists those that are known"
        faults.append(f"{name} is no setting; {way_out}")
    return faults
