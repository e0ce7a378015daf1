"""Admission of users by limits and rates, before a shard hears of them and before anything is accepted.

What it keeps true: a refusal says whose doing it is, and when to come again. 429 is the asker's (it or its address
connects too fast, its address has as many connections as it may have, or has shown too many wrong tokens); 503 is the
system's (the group is full, or more connect than it takes in a second). The router says with each heartbeat which
groups and addresses are full; what it has not repeated for some heartbeats no longer counts, and the shards decide. Of
a full group some may try all the same (`solowire.gateway.admission.probe_limiter`), because a shard may have room for
them that nobody else has. Who is refused is told a time of its own, within a window that grows
with the number of those who wait, so that they don't come back all at once. All tables have bounds.

Times are seconds of any one clock, unless they are told to clients: those count from now.
"""

from __future__ import annotations

from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.auth.failed_auth_limiter import REMEMBERED_ADDRESSES, FailedAuthLimiter
from solowire.backplane.messages import DEAD_AFTER_SECONDS, AdmissionState
from solowire.errors import RequestRejected
from solowire.gateway.admission.jitter import jitter_fraction
from solowire.gateway.admission.probe_limiter import ProbeLimiter
from solowire.model.access import ADMINISTER, Identity, find_group
from solowire.runtime.settings.auth_settings import AuthSettings
from solowire.runtime.settings.limits_settings import LimitsSettings

REMEMBERED_USERS = 20_000
"""Some 4 MB when so many have connected just now."""
LONGEST_SPREAD_SECONDS = 30.0
"""However many wait: one who hammers at the door must not send the others away for longer."""
ADMINISTRATORS_RETRY_SECONDS = 1.0

_LATER = "try again when Retry-After says"
RAISE_CONNECTIONS = (
    f"{_LATER}; an operator raises SOLOWIRE_LIMITS__MAX_CONNECTIONS, or the group's part by SOLOWIRE_LIMITS__GROUPS"
)
_RAISE_RATE = f"{_LATER}; an operator raises SOLOWIRE_LIMITS__CONNECT__RATE"


class ConnectLimiter:
    """Decides who may connect: `update` takes the router's state, `check` is asked for each who wants to.

    Rates are of all gateways together, but for a user's, which are of each gateway: a user's clients come to whichever
    they are sent to, and should not meet a limit sooner where gateways are many.
    """

    def __init__(self, limits: LimitsSettings | None = None, auth: AuthSettings | None = None) -> None:
        limits, auth = limits or LimitsSettings(), auth or AuthSettings()
        self._limits = limits.with_administrators()
        self._connect = connect = limits.connect
        self._bad_tokens = bad_tokens = Rate(auth.bad_token_rate, auth.bad_token_burst)
        self._gateways = 1
        self._rate = Rate(connect.rate, connect.burst)
        self._full_at = float("-inf")
        self._by_address: BucketTable | None = None
        if connect.rate_per_address is not None:
            self._by_address = BucketTable(
                Rate(connect.rate_per_address, connect.burst_per_address), REMEMBERED_ADDRESSES
            )
        each = limits.max_connections_per_user
        self._by_user = BucketTable(Rate(connect.rate_per_user * each, connect.burst_per_user * each), REMEMBERED_USERS)
        self.failed_auth = FailedAuthLimiter(bad_tokens)
        self._probes = ProbeLimiter()
        self._state_until = float("-inf")
        self._full_groups: frozenset[str] = frozenset()
        self._unknown_groups_full = False
        self._full_addresses: frozenset[str] = frozenset()
        self._retry_after = 1.0
        self._waiting_until = float("-inf")

    def update(self, state: AdmissionState, now: float) -> None:
        """The router's newest word."""
        self._state_until = now + DEAD_AFTER_SECONDS
        self._full_groups = frozenset(state.full_groups)
        self._unknown_groups_full = state.unknown_groups_full
        self._full_addresses = frozenset(state.full_addresses)
        self._retry_after = state.retry_after
        if state.gateway_count != self._gateways:
            self._gateways = max(1, state.gateway_count)
            self._divide_rates()

    def check(self, identity: Identity, address: str, now: float) -> None:
        """The identity may ask its shard for a place; one that tries a closed door has tried.

        Raises RequestRejected.
        """
        wait = self._by_user.wait_seconds(identity.user, now)
        if wait:
            raise RequestRejected(
                429,
                "connect_rate_limited",
                "you connect too fast",
                "keep the connection that you have, and wait longer after each attempt that fails",
                wait,
                scope="user",
            )
        is_state_known = now < self._state_until
        if is_state_known and address in self._full_addresses:
            raise RequestRejected(
                429,
                "too_many_from_address",
                "as many connections are open from your address as one address may have",
                "close one of them first; an operator raises SOLOWIRE_LIMITS__MAX_CONNECTIONS_PER_ADDRESS",
                self._retry_after * (1 + jitter_fraction(identity.user, b"admission")),
            )
        if self._by_address is not None and address:
            wait = self._by_address.wait_seconds(address, now)
            if wait:
                raise RequestRejected(
                    429,
                    "connect_rate_limited",
                    f"more connect from your address than the {self._connect.rate_per_address:g} a second "
                    "that one address may open",
                    "wait as long as Retry-After says; an operator raises SOLOWIRE_LIMITS__CONNECT__RATE_PER_ADDRESS",
                    wait + jitter_fraction(identity.user, b"admission") * self._by_address.bucket_rate.refill_seconds,
                    scope="address",
                )
        if self._is_group_full(identity, now) and not self._probes.allow(identity.user, now):
            group = find_group(identity, self._limits.group_by)
            message = f"all connections that the group {group!r} may have are taken"
            raise self._make_rejection("over_limit", message, RAISE_CONNECTIONS, identity, now)
        # Administrators always get in, also in the midst of everybody's return; they are few.
        if self._rate.wait_seconds(self._full_at, now) and not identity.has_permission(ADMINISTER):
            message = f"more users connect than the {self._connect.rate:g} a second that the system takes"
            raise self._make_rejection("connect_rate_limited", message, _RAISE_RATE, identity, now, scope="system")

    def record(self, identity: Identity, address: str, now: float) -> None:
        """The identity, which `check` let pass, is sent to its shard: it counts as a new connection."""
        self._full_at = self._rate.full_after(self._full_at, now)
        self._by_user.charge_tokens(identity.user, now)
        if self._by_address is not None and address:
            self._by_address.charge_tokens(address, now)
        if not self._is_group_full(identity, now):
            self._probes.remember(identity.user, now)

    def _divide_rates(self) -> None:
        """Each gateway takes its part of what the settings allow; a burst of one at the least."""
        connect, gateways = self._connect, self._gateways
        self._rate = Rate(connect.rate / gateways, connect.burst / gateways)
        if self._by_address is not None and connect.rate_per_address is not None:
            self._by_address.bucket_rate = Rate(
                connect.rate_per_address / gateways, connect.burst_per_address / gateways
            )
        per_s, burst = self._bad_tokens.per_second, self._bad_tokens.burst
        self.failed_auth.buckets.bucket_rate = Rate(per_s / gateways, burst / gateways)

    def _is_group_full(self, identity: Identity, now: float) -> bool:
        if now >= self._state_until:
            return False
        group = find_group(identity, self._limits.group_by)
        return group in self._full_groups or (self._unknown_groups_full and group not in self._limits.groups)

    def _make_rejection(
        self, code: str, message: str, hint: str, identity: Identity, now: float, scope: str = ""
    ) -> RequestRejected:
        """All who are refused stand in a queue that empties at the system's own rate, but for administrators.

        Who comes last is told a time in the second half of the queue's length: so no second of it gets much more than
        the rate, however many were refused at once.
        """
        if identity.has_permission(ADMINISTER):
            return RequestRejected(503, code, message, hint, ADMINISTRATORS_RETRY_SECONDS, scope=scope)
        waiting = max(0.0, self._waiting_until - now)
        self._waiting_until = now + min(waiting + self._gateways / self._connect.rate, LONGEST_SPREAD_SECONDS)
        place = jitter_fraction(identity.user, b"admission")
        spread = max(self._retry_after * place, waiting * (1 + place) / 2)
        return RequestRejected(503, code, message, hint, self._retry_after + spread, scope=scope)
