"""Settings: read once, at start, validated together, and passed down as values.

Later ones win: defaults, the file of `--config`, `.env`, the environment (`SOLOWIRE_…`), options of the command line.
Whatever is wrong becomes one line that names the setting. The file is longer than others because all that can be set
stands in one list.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import structlog
from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from solowire.algorithms.name_suggestion import suggest_name
from solowire.auth.key_places import MAX_SECRETS
from solowire.errors import ConfigError
from solowire.model.access import ADMINISTRATORS
from solowire.runtime.data_directory import close_directory, make_private, read_secret_file
from solowire.runtime.environment import find_unknown, is_service_link
from solowire.runtime.identity_settings import SECRET_CHARACTERS, IdentitySettings, split_list

PREFIX = "SOLOWIRE_"
DOTENV = ".env"
_IPC_PATH_LIMIT = 107  # bytes of sun_path in a unix socket's address, unix(7)
MAX_SHARDS = 256
_SHARD_URL = re.compile(r"wss?://[^/?#\s]+")
_HOST = re.compile(r"[^\s/@?#:]+|\[?[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%\w+)?\]?")
_ORIGIN = re.compile(  # RFC 6454, section 6.2
    r"\*|null|(?!https://.*:443$|http://.*:80$)[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:*\[\]A-Z]+)(:\d+)?"
)
_MASKED = ("secret", "token", "accepted_secrets")
_TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header can carry

ADMINISTRATORS_RESERVE = 16
"""Slots for administrators, or a tenth of all if that is less, one at least; unless `groups` says what they have."""

logger = structlog.get_logger("solowire.settings")


NO_DATA_DIR = Path("~/.local/share/solowire")
"""Stands for the default where there is no home directory: `run_dir` and `load_secret` refuse it, nothing is made."""


def _default_data_dir() -> Path:
    if os.environ.get("XDG_DATA_HOME"):
        return Path(os.environ["XDG_DATA_HOME"]) / "solowire"
    try:
        home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = ""
    return Path(home) / ".local/share/solowire" if home else NO_DATA_DIR


class Group(BaseModel):
    """Who shares connections fairly. weight: of its share. reserved: slots that nobody else gets. limit: of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: float = Field(default=1.0, ge=0.001, le=1000)
    reserved: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)


_ANY = Group.model_validate({})


class Settings(IdentitySettings):
    """Everything that can be set. Times say their unit in their name."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=DOTENV,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    data_dir: Path = Field(default_factory=_default_data_dir, description="journal, secret and sockets of one system")
    host: str = Field("127.0.0.1", description="address that gateway and shards listen on")
    port: int = Field(8000, ge=0, le=65535, description="the gateway's port; shards take the ports after it")
    shards: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=MAX_SHARDS, description="shards of `up`")
    shard_port: int | None = Field(None, ge=0, le=65535, description="one shard's port; default: port + 1 + index")
    api_host: str = Field("127.0.0.1", description="address that the router's and the shards' API ports listen on")
    shard_api_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="the first shard's API port, others' after it; default: Unix sockets in the data directory",
    )
    shard_url: str = Field(
        "{scheme}://{host}:{port}/ws",
        description="what clients are told; {scheme}, {host}: of their request; {port}, {shard}: of the shard",
    )
    advertise_host: str | None = Field(None, description="where gateways reach this shard; default: host")
    allowed_origins: Annotated[list[str], NoDecode, BeforeValidator(split_list)] = Field(
        default_factory=list,
        description="sites (https://app.example.com) whose pages may connect, beside the request's own host; * for all",
    )
    backplane: str | None = Field(None, description="the router's ZeroMQ address; default: ipc in the data directory")
    url: str = Field("http://127.0.0.1:8000", description="the gateway, for tail, publish, stats and sources")
    token: SecretStr | None = Field(
        None, description="token for tail, publish, stats and sources; default: signed here"
    )
    catalog: Path | None = Field(
        None, description="TOML or JSON with event types of this deployment's own, beside the domain's"
    )
    roles_file: Path | None = Field(None, description="TOML that replaces the built-in roles")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged, and above")
    log_format: Literal["console", "json"] | None = Field(None, description="default: console on a terminal, else json")

    on_duplicate: Literal["replace", "reject"] = Field("replace", description="a second connection of a user")
    hello_timeout_s: float = Field(2.0, gt=0, le=60, description="how long a client may take for its hello")
    heartbeat_s: float = Field(25.0, ge=0.2, le=600, description="a ping this often; two unanswered close (4408)")
    expiry_notice_s: float = Field(
        60.0,
        ge=0,
        description="how long before its token expires a client is told; a fifth of its life if that is less",
    )
    token_leeway_s: float = Field(
        60.0, ge=0, le=3600, description="how far nbf and iat of a token may be ahead of this machine's clock"
    )
    stalled_s: float = Field(
        30.0, gt=0, le=3600, description="how long a socket may take nothing before it is closed (4413)"
    )
    message_rate: float = Field(20.0, gt=0, description="messages per second from one user")
    message_burst: float = Field(60.0, ge=1, description="messages that one user may send at once")
    subscription_rate: float = Field(
        10.0, gt=0, description="hello, subscribe, unsubscribe, refresh per second of one user; large ones are several"
    )
    subscription_burst: float = Field(60.0, ge=1, description="such messages that one user may send at once")
    flush_high_ms: float = Field(20.0, ge=0, le=10_000, description="longest that an event of high priority waits")
    flush_normal_ms: float = Field(100.0, ge=0, le=10_000, description="the same of normal priority")
    flush_low_ms: float = Field(1000.0, ge=0, le=60_000, description="the same of low priority")
    flush_per_connection_ms: float = Field(1.0, ge=0, description="a shard waits this for each connection, up to those")
    reconnect_min_ms: int = Field(500, ge=0, description="soonest that clients come back after a lost connection")
    reconnect_max_ms: int = Field(20_000, ge=1, description="what the wait before each further attempt grows to")
    moves_per_s: float = Field(
        500.0, gt=0, description="users sent away, or let back, per second when the ring changes"
    )
    grace_s: float = Field(10.0, gt=0, le=3600, description="how long a process may take to end after SIGTERM")
    stuck_s: float = Field(10.0, ge=0.5, le=3600, description="`up` kills a process whose loop is stuck for so long")
    send_buffer_bytes: int = Field(256 * 1024, ge=4096, description="SO_SNDBUF of client sockets")

    # Connections: how many, whose, how fast.
    max_connections: int = Field(10_000, ge=1, description="connections of the whole system")
    max_connections_per_shard: int | None = Field(None, ge=1, description="the same of one shard; default: no limit")
    max_connections_per_user: int = Field(1, ge=1, le=100, description="of one user; the newest stay")
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="of one address, but for what it opens at several shards within a second; default: no limit",
    )
    group_by: Literal["role", "tenant"] = Field(
        "role", description="what of its token makes a user's group; who may administer is in the group admin"
    )
    groups: dict[str, Group] = Field(
        default_factory=dict,
        description="name → weight (1), reserved slots (0; of admin 16, or a tenth of all) and limit (none) of a group",
    )
    lease_s: float = Field(
        120.0, ge=1, le=3600, description="a shard that has not heard of the router for so long sends its users away"
    )
    connect_rate: float = Field(1000.0, gt=0, description="new connections per second of the whole system")
    connect_burst: float = Field(2000.0, ge=1, description="new connections that may come at once")
    connect_rate_per_user: float = Field(
        10.0, gt=0, description="the same of one user, for each connection that it may have, at each gateway"
    )
    connect_burst_per_user: float = Field(200.0, ge=1, description="the same of one user, for each of its connections")
    connect_rate_per_address: float | None = Field(None, gt=0, description="the same of one address; default: no limit")
    connect_burst_per_address: float = Field(50.0, ge=1, description="the same of one address")
    trusted_proxies: Annotated[list[str], NoDecode, BeforeValidator(split_list)] = Field(
        default_factory=list, description="networks, such as 10.0.0.0/8, whose X-Forwarded-… or Forwarded is believed"
    )

    # What it says of itself: statistics, metrics, alerts, audit.
    router_port: int | None = Field(
        None, ge=0, le=65535, description="the router's port for /metrics; default: port + 257, after 256 shards'"
    )
    stats_event_s: float = Field(30.0, ge=0, description="a gateway_stats event this often; 0: never")
    alert_after_s: float = Field(3.0, ge=0, description="an alert begins when a number was too high for so long")
    alert_over_s: float = Field(10.0, ge=0, description="it ends below 80 % of the threshold for so long")
    alert_lag_s: float = Field(2.0, gt=0, description="age of the oldest event that a shard has not acknowledged")
    alert_queue_age_s: float = Field(10.0, gt=0, description="age of the event that the slowest connection gets next")
    alert_loop_lag_s: float = Field(0.5, gt=0, description="lateness of a timer in a process")
    alert_memory_bytes: int = Field(4 * 2**30, ge=2**20, description="memory of a process")
    alert_lease_percent: int = Field(95, ge=1, le=100, description="how much of its lease a shard uses")
    alert_refused_per_s: float = Field(20.0, gt=0, description="connections refused, by all processes")
    audit: Literal["on", "off", "stderr"] = Field(
        "on", description="the audit log; on: in audit/ of the data directory"
    )
    audit_bytes: int = Field(16 * 2**20, ge=2**16, description="size at which a process begins a new audit file")
    audit_files: int = Field(8, ge=1, le=1000, description="audit files of a process that are kept")
    # Before accepting: who is slowed down, and what is cut.
    bad_token_rate: float = Field(1.0, gt=0, description="wrong tokens per second that one address may show")
    bad_token_burst: float = Field(20.0, ge=1, description="wrong tokens that one address may show at once")
    handshake_s: float = Field(
        10.0, ge=0.1, le=60, description="a connection that sends no whole request head for so long is cut"
    )
    keepalive_s: float = Field(
        75.0, ge=1, le=3600, description="an HTTP connection that sends no further request for so long is closed"
    )
    max_pending: int = Field(4000, ge=1, description="connections of a process that have not sent a whole head yet")
    max_pending_per_address: int = Field(1000, ge=1, description="the same of one address")
    max_http_connections: int = Field(5000, ge=1, description="HTTP connections of a gateway")
    max_http_connections_per_address: int = Field(
        1000, ge=1, description="the same of one address; `trusted_proxies` are not counted"
    )

    # Slow readers, floods and states: what is not sent as it comes.
    telemetry_per_s: float = Field(
        500.0, gt=0, description="telemetry of one type, for one feed, above which it is summed up"
    )
    telemetry_types_per_s: dict[str, float] = Field(default_factory=dict, description="the same by event type")
    telemetry_interval_s: float = Field(1.0, ge=0.1, le=60, description="how often what is summed up is sent")
    state_interval_s: float = Field(
        30.0, ge=0, le=3600, description="a state's value is sent this often at most, unless critical; 0: as it comes"
    )
    state_intervals_s: dict[str, float] = Field(default_factory=dict, description="the same by event type")

    merge_memory: bool = Field(
        False,
        description="shards offer their memory to same-page merging: 1 KB less of some 26 for a silent connection",
    )
    recent_events: int = Field(
        100_000, ge=100, description="events in a shard's recent log; of durable ones a quarter more, for slow readers"
    )
    recent_bytes: int = Field(
        128 * 2**20,
        ge=2**20,
        description="what a shard's recent log takes in memory; older durable events and written ones, a quarter each",
    )
    journal: Literal["sqlite", "memory"] = Field("sqlite", description="where the router keeps its log")
    journal_age_s: float = Field(24 * 3600.0, gt=0, description="how long the router keeps an event, in seconds")
    journal_events: int = Field(5_000_000, ge=100, description="events in the router's log")
    journal_bytes: int = Field(2 * 2**30, ge=2**20, description="size of the router's log")
    replay_bytes: int = Field(
        32 * 2**20, ge=2**16, description="what one client may get again when it comes back; more is `too_much`"
    )
    replays: int = Field(8, ge=1, description="replays from the router's log that a shard does at a time")
    replay_rate: float = Field(
        5_000.0, gt=0, description="events of the log that one user may have read per second when it comes back"
    )
    replay_burst: float = Field(1_000_000.0, ge=1, description="the same at once, whatever it gets of them")
    replay_timeout_s: float = Field(
        60.0, ge=1, le=600, description="how long a client that comes back may wait for all it missed, else `too_much`"
    )
    history_rate: float = Field(10.0, gt=0, description="pages of history per second of one user")
    history_burst: float = Field(50.0, ge=1, description="the same at once")
    history_per_user: int = Field(2, ge=1, description="questions about history of one user under way at a time")
    history_questions: int = Field(4, ge=1, description="questions about history that a shard works on at a time")
    history_timeout_s: float = Field(
        5.0, ge=0.1, le=60, description="how long a page of history is made; then it ends with what was found"
    )
    history_page_events: int = Field(5_000, ge=1, le=50_000, description="events in one page of history, at most")
    duplicate_window_s: float = Field(600.0, ge=0, description="how long an event's id is remembered")
    credit: int = Field(10_000, ge=100, description="events that may be under way to a shard")

    publish_max_bytes: int = Field(4 * 2**20, ge=1024, description="one publish request")
    publish_max_events: int = Field(5_000, ge=1, description="events in one publish request")
    event_max_bytes: int = Field(32 * 1024, ge=256, le=60 * 1024, description="one event's data as JSON")
    publish_timeout_s: float = Field(5.0, gt=0, le=600, description="how long a gateway waits for the router's answer")

    # Backpressure on publishers, and how fast each may be.
    publish_rate: float = Field(20_000.0, gt=0, description="events per second from one publisher, at each gateway")
    publish_burst: float = Field(40_000.0, ge=1, description="events that one publisher may send at once")
    publish_held_requests: int = Field(1_000, ge=1, description="publish requests that a gateway holds at a time")
    publish_held_bytes: int = Field(32 * 2**20, ge=2**16, description="their size together")
    publish_min_body_bytes_per_s: float = Field(
        4096.0, ge=0, description="a publish request that comes more slowly is ended (408); 0: within a minute"
    )
    publish_body_grace_s: float = Field(
        5.0, gt=0, le=60, description="how long one may fall silent, and how far behind that pace it may fall"
    )
    lag_soft_s: float = Field(
        1.0, gt=0, le=3600, description="publishers are slowed when a live shard is so far behind the log"
    )
    lag_hard_s: float = Field(5.0, gt=0, le=3600, description="and refused when it is so far")

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if not self.flush_high_ms <= self.flush_normal_ms <= self.flush_low_ms:
            raise ValueError("flush_high_ms ≤ flush_normal_ms ≤ flush_low_ms must hold")
        if self.reconnect_min_ms > self.reconnect_max_ms:
            raise ValueError("reconnect_min_ms must not be above reconnect_max_ms")
        if self.port and self.port + self.shards > 65535:
            raise ValueError(f"port {self.port} leaves no room for {self.shards} shards' ports after it")
        if self.publish_max_bytes < self.event_max_bytes:
            raise ValueError("publish_max_bytes must not be below event_max_bytes: one event would not fit")
        if self.publish_held_bytes < self.publish_max_bytes:
            raise ValueError("publish_held_bytes must not be below publish_max_bytes: one request would not fit")
        if self.lag_soft_s >= self.lag_hard_s:
            raise ValueError("lag_soft_s must be below lag_hard_s")
        self.check_identity()
        if self.token is not None and not _TOKEN.fullmatch(self.token.get_secret_value()):
            raise ValueError("token must be one word of plain letters, as `solowire token` prints it")
        self._check_limits()
        if not _is_http(self.url):
            raise ValueError(f"url must be one of http:// or https://, with a host (got {self.url!r})")
        try:
            shard_url = self.shard_url.format(scheme="ws", host="h", port=1, shard=0)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError("shard_url may hold {scheme}, {host}, {port} and {shard}, nothing else") from None
        if not _SHARD_URL.match(shard_url):
            raise ValueError(
                f"shard_url must begin with {{scheme}}://, ws:// or wss:// and a host ({self.shard_url!r})"
            )
        if self.advertise_host is not None and not _HOST.fullmatch(self.advertise_host):
            raise ValueError(
                f"advertise_host must be an address or a name, without a scheme and a port ({self.advertise_host!r})"
            )
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"allowed_origins: no browser sends {origin!r}; write https://app.example.com, in lower case, with "
                    "a port if that is not the usual one, and nothing behind it; * alone allows all"
                )
        for network in self.trusted_proxies:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(f"trusted_proxies: {error}; write 10.0.0.0/8 or 10.1.2.3") from None
        if self.backplane is not None and not self.backplane.startswith("ipc://"):
            raise ValueError("backplane must be an ipc:// address: tcp needs CURVE keys, which this version can't take")
        if self.backplane is not None and _too_long(self.backplane.removeprefix("ipc://")):
            raise ValueError(f"backplane is too long for a unix socket: {_IPC_PATH_LIMIT} bytes of path at most")
        return self

    def _check_limits(self) -> None:
        """Raises ValueError for limits on connections that contradict each other."""
        most = self.max_connections
        for name, group in self.groups.items():
            if group.limit is not None and group.reserved > group.limit:
                raise ValueError(
                    f"groups: {name!r} has {group.reserved} slots reserved and a limit of {group.limit}; "
                    "lower its `reserved` or raise its `limit`"
                )
            if group.limit is not None and group.limit > most:
                raise ValueError(
                    f"groups: the limit of {name!r}, {group.limit}, is above max_connections, {most}; "
                    "lower the one or raise the other"
                )
        reserved = sum(group.reserved for group in self.groups.values())
        if reserved > most:
            raise ValueError(
                f"groups: {reserved} slots are reserved, and max_connections is {most}; "
                "lower the reserves or raise max_connections"
            )
        for name in ("max_connections_per_shard", "max_connections_per_user", "max_connections_per_address"):
            value = getattr(self, name)
            if value is not None and value > most:
                raise ValueError(f"{name}, {value}, is above max_connections, {most}; lower the one or raise the other")

    @property
    def groups_in_force(self) -> dict[str, Group]:
        """`groups`, and a reserve for administrators where nobody has said how many slots are reserved for them."""
        admins = self.groups.get(ADMINISTRATORS, _ANY)
        if "reserved" in admins.model_fields_set or self.max_connections < 2:
            return self.groups
        left = self.max_connections - sum(group.reserved for group in self.groups.values())
        most = left if admins.limit is None else min(left, admins.limit)
        reserved = min(ADMINISTRATORS_RESERVE, max(1, self.max_connections // 10), most)
        return self.groups | {ADMINISTRATORS: admins.model_copy(update={"reserved": reserved})}

    @property
    def run_dir(self) -> Path:
        """Raises ConfigError if there is no data directory."""
        return self.need_data_dir() / "run"

    def need_data_dir(self) -> Path:
        """Raises ConfigError where none is set and there is no home directory for the default one."""
        if self.data_dir == NO_DATA_DIR:
            raise ConfigError(
                f"no data directory: user {os.getuid()} has no home directory for it; "
                f"name one with --data-dir, or set {PREFIX}DATA_DIR or HOME"
            )
        return self.data_dir

    @property
    def backplane_address(self) -> str:
        """Raises ConfigError if the path is longer than a unix socket's address may be."""
        if self.backplane is not None:
            return self.backplane
        path = str((self.run_dir / "router").absolute())
        if _too_long(path):
            raise ConfigError(f"the data directory's path is too long for a unix socket: {path}; choose a shorter one")
        return f"ipc://{path}"

    def find_shard_api(self, index: int) -> tuple[str, int] | Path:
        """Where a shard's HTTP API listens: host and port (0 lets the system choose), or a Unix socket."""
        if self.shard_api_port is None:
            return self.run_dir.absolute() / f"s{index}"
        return self.api_host, self.shard_api_port and self.shard_api_port + index

    def find_shard_port(self, index: int) -> int:
        """0 lets the system choose."""
        if self.shard_port is not None:
            return self.shard_port
        return self.port + 1 + index if self.port else 0

    @property
    def router_metrics_port(self) -> int | None:
        """Where the router serves its metrics, 0 if the system is to choose; None if there is no room for a default."""
        if self.router_port is not None or not self.port:
            return self.router_port or 0
        port = self.port + 1 + MAX_SHARDS
        return port if port <= 65535 else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        for source in (env_settings, dotenv_settings):
            if isinstance(source, EnvSettingsSource):
                source.env_vars = {name: value for name, value in source.env_vars.items() if not _is_link(name, value)}
        return init_settings, env_settings, dotenv_settings, _ConfigFileSource(settings_cls)


class _ConfigFileSource(PydanticBaseSettingsSource):
    """The file of `--config`, below the environment and above the defaults."""

    values: ClassVar[dict[str, Any]] = {}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.values)


def _too_long(path: str) -> bool:
    return len(os.fsencode(path)) > _IPC_PATH_LIMIT


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_link(name: str, value: str | None) -> bool:
    return name.upper().startswith(PREFIX) and is_service_link(name[len(PREFIX) :], value)


def load(config: Path | None = None, **options: Any) -> Settings:
    """The settings in force. options: from the command line, None where not given. Raises ConfigError."""
    _ConfigFileSource.values = _read(config) if config is not None else {}
    faults = find_unknown(os.environ, PREFIX, Settings.model_fields)
    settings = None
    try:
        dotenv = dotenv_values(DOTENV) if Path(DOTENV).is_file() else {}
        faults += [f"{DOTENV}: {fault}" for fault in find_unknown(dotenv, PREFIX, Settings.model_fields)]
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        faults += [_fault(e) for e in error.errors(include_url=False)]
    except UnicodeDecodeError as error:
        faults.append(f"{DOTENV}: not valid UTF-8: {error.reason} at byte {error.start}")
    except OSError as error:
        faults.append(f"{DOTENV}: {error.strerror}; make it readable, or start elsewhere")
    except ValueError as error:  # pydantic-settings: a value that can't even be parsed
        faults.append(str(error).splitlines()[0])
    if settings is None or faults:
        raise ConfigError("; ".join(faults))
    for name, value in (dotenv | os.environ).items():
        if _is_link(name, value) and name[len(PREFIX) :].lower() in Settings.model_fields:
            hint = "Kubernetes set it, for a service of that name; name a port by --port or a file of --config"
            logger.warning("service_link_ignored", name=name.upper(), value=value, hint=hint)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))  # editors on Windows begin a file so
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not valid TOML: {error}") from None
    unknown = [name for name in values if name not in Settings.model_fields]
    if unknown:
        raise ConfigError(
            f"--config {path}: unknown setting {unknown[0]!r}"
            + suggest_name(unknown[0], Settings.model_fields, "`solowire config` lists those that are known")
        )
    return values


def _fault(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if not place:
        return str(message)
    if error["type"] == "extra_forbidden":
        known = f"a group has {', '.join(Group.model_fields)}"
        message = f"there is no such thing{suggest_name(str(error['loc'][-1]), Group.model_fields, known)}"
    shown = "" if place.partition(".")[0] in _MASKED else f" (got {error.get('input')!r})"
    return f"{PREFIX}{place.upper()}: {message}{shown}"


def make_data_directory(settings: Settings) -> Path:
    """Makes the data directory, if it isn't there, for its owner alone. Raises ConfigError."""
    directory = settings.need_data_dir()
    try:
        make_private(directory)
    except OSError as error:
        raise ConfigError(f"data directory {directory}: {error.strerror}; choose another with --data-dir") from None
    return directory


def make_directories(settings: Settings) -> None:
    """Makes the data directory and the sockets' directory, closed to others. Raises ConfigError."""
    try:
        make_private(settings.need_data_dir())
        close_directory(settings.data_dir)
        settings.run_dir.mkdir(exist_ok=True, mode=0o700)
        settings.run_dir.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"data directory {settings.data_dir}: {error.strerror}; choose another with --data-dir"
        ) from None


def load_secrets(settings: Settings, *, create: bool) -> tuple[list[str], bool]:
    """The secrets in force, of which the first signs, and whether it was made just now.

    create: the caller is a process of the system, and its data directory is closed to others.
    Raises ConfigError if there is none and none may be made, or others may read it.
    """
    accepted = [secret.get_secret_value() for secret in settings.accepted_secrets]
    if settings.secret is not None:
        made, found = False, [settings.secret.get_secret_value()]
        if create and settings.data_dir.is_dir():
            make_directories(settings)
    else:
        found, made = _load_secrets_file(settings.need_data_dir() / "secret", settings, create)
    secrets_in_force = list(dict.fromkeys([*found, *accepted]))
    if len(secrets_in_force) > MAX_SECRETS:
        raise ConfigError(f"there are {len(secrets_in_force)} secrets, {MAX_SECRETS} are the most")
    shortest = min(len(secret.encode()) for secret in secrets_in_force)
    if create and shortest < 32:
        logger.warning("secret_short", bytes=shortest, hint="RFC 7518 asks for 32 or more")
    return secrets_in_force, made


def load_secret(settings: Settings, *, create: bool) -> tuple[str, bool]:
    """The secret that signs, and whether it was made just now. Raises ConfigError as `load_secrets` does."""
    found, made = load_secrets(settings, create=create)
    return found[0], made


def _load_secrets_file(path: Path, settings: Settings, create: bool) -> tuple[list[str], bool]:
    try:
        if create:
            make_directories(settings)
        if create and not path.exists():
            # Written beside and linked into place, so that of two that start at once both get one whole secret.
            draft = path.with_name(f".secret-{secrets.token_hex(8)}")
            try:
                draft.touch(mode=0o600)
                draft.write_text(secrets.token_urlsafe(48) + "\n")
                os.link(draft, path)
                return _read_secrets(path), True
            except FileExistsError:
                pass
            finally:
                draft.unlink(missing_ok=True)
        return _read_secrets(path), False
    except FileNotFoundError:
        raise ConfigError(
            f"no secret: {path} doesn't exist; set {PREFIX}SECRET, or name the data directory of a running system"
        ) from None
    except OSError as error:
        raise ConfigError(f"secret file {path}: {error.strerror}") from None


def _read_secrets(path: Path) -> list[str]:
    """One a line. Raises ConfigError if one is none: an empty one would sign tokens that anyone can make."""
    try:
        found = [line.strip() for line in read_secret_file(path).strip().splitlines() if line.strip()]
    except UnicodeDecodeError:
        found = []
    if not found or any(len(secret) < SECRET_CHARACTERS for secret in found):
        raise ConfigError(
            f"secret file {path}: it must hold {SECRET_CHARACTERS} characters or more; remove it to get a new one"
        )
    return found
