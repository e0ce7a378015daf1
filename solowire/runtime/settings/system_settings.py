"""All that can be set: what is set first stands alone, everything else in the section of the room that takes it."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from solowire.algorithms.hosts import (
    find_own_address,
    is_http_url,
    is_loopback,
    is_wildcard,
    split_endpoint,
    strip_brackets,
)
from solowire.auth.key_places import MAX_SECRETS
from solowire.errors import ConfigError
from solowire.runtime.settings.auth_settings import AuthSettings
from solowire.runtime.settings.curve_settings import CurveSettings
from solowire.runtime.settings.gateway_settings import GatewaySettings
from solowire.runtime.settings.history_settings import HistorySettings
from solowire.runtime.settings.legacy_settings import LegacySettings
from solowire.runtime.settings.limits_settings import LimitsSettings
from solowire.runtime.settings.listen_settings import ListenSettings
from solowire.runtime.settings.process_settings import AuditSettings, LoggingSettings, ProcessSettings
from solowire.runtime.settings.publish_settings import PublishSettings
from solowire.runtime.settings.replay_settings import ReplaySettings
from solowire.runtime.settings.router_settings import AlertSettings, JournalSettings, RouterSettings
from solowire.runtime.settings.section import make_conflict
from solowire.runtime.settings.session_settings import SessionSettings
from solowire.runtime.settings.shard_settings import ShardSettings
from solowire.runtime.settings.source_settings import SourceSettings

PREFIX = "SOLOWIRE_"
DELIMITER = "__"
SECRET_CHARACTERS = 16
MAX_SHARDS = 256
MASKED = ("secret", "token", "accepted_secrets", "curve")
"""Settings whose values nobody is shown."""
LOCAL_HOST = "127.0.0.1"
_IPC_PATH_LIMIT = 107  # bytes of sun_path in a unix socket's address, unix(7)
_TOKEN = re.compile(r"[\x21-\x7e]+")  # what a header can carry

NO_DATA_DIR = Path("~/.local/share/solowire")
"""Stands for the default where there is no home directory: `need_data_dir` refuses it, nothing is made."""


def _default_data_dir() -> Path:
    if os.environ.get("XDG_DATA_HOME"):
        return Path(os.environ["XDG_DATA_HOME"]) / "solowire"
    try:
        home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = ""
    return Path(home) / ".local/share/solowire" if home else NO_DATA_DIR


def trim_secret(value: Any) -> Any:
    """A text without what editors and `echo` put around it: in a file and in a variable one secret is one key."""
    return value.strip().removeprefix("\ufeff").strip() if isinstance(value, str) else value


def _split_secrets(value: Any) -> Any:
    """As `split_list`, of what may hold any character: one that has a comma in it is written in a JSON list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("it begins with [ and is no JSON list") from None
    elif isinstance(value, str):
        value = [piece for piece in value.split(",") if piece.strip()]
    return [trim_secret(one) for one in value] if isinstance(value, list) else value


class Settings(LegacySettings):
    """All settings. Made by hand, as in tests, they are read from nowhere: `load` reads them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    data_dir: Path = Field(default_factory=_default_data_dir, description="journal, secret and sockets of one system")
    host: str = Field("127.0.0.1", description="address that gateway and shards listen on")
    port: int = Field(8000, ge=0, le=65535, description="the gateway's port; shards take the ports after it")
    shards: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=MAX_SHARDS, description="shards of `up`")
    secret: Annotated[SecretStr | None, BeforeValidator(trim_secret)] = Field(
        None, description="signs tokens and tickets; made in the data directory if not set"
    )
    accepted_secrets: Annotated[list[SecretStr], NoDecode, BeforeValidator(_split_secrets)] = Field(
        default_factory=list,
        description="more secrets that tokens may be signed with, while they are being changed",
    )
    url: str = Field("http://127.0.0.1:8000", description="the gateway, for tail, publish, stats and sources")
    token: Annotated[SecretStr | None, BeforeValidator(trim_secret)] = Field(
        None, description="token for tail, publish, stats and sources; default: signed here"
    )
    ca_file: Path | None = Field(
        None, description="PEM with the CA of that gateway's certificate; default: SSL_CERT_FILE, or the system's CAs"
    )
    token_file: Path | None = Field(
        None, description="file with that token in place of `token`, read again whenever another one is needed"
    )
    backplane: str | None = Field(
        None,
        description="where shards and gateways find the router: tcp://HOST:PORT (by convention port 7400, keys in "
        "`curve`), or ipc:///PATH; default: ipc in the data directory",
    )
    backplane_bind: str | None = Field(
        None,
        description="where the router listens, if others find it under another address: tcp://[::]:7400 or "
        "tcp://0.0.0.0:7400; default: backplane",
    )
    shard_index: int | None = Field(
        None, ge=0, le=MAX_SHARDS - 1, description="which shard a process is, from 0, if --index doesn't say so"
    )
    catalog: Path | None = Field(
        None, description="TOML or JSON with event types of this deployment's own, beside the domain's"
    )
    roles_file: Path | None = Field(None, description="TOML that replaces the built-in roles")

    auth: AuthSettings = AuthSettings()
    curve: CurveSettings = CurveSettings()
    listen: ListenSettings = ListenSettings()
    gateway: GatewaySettings = GatewaySettings()
    limits: LimitsSettings = LimitsSettings()
    session: SessionSettings = SessionSettings()
    publish: PublishSettings = PublishSettings()
    shard: ShardSettings = ShardSettings()
    replay: ReplaySettings = ReplaySettings()
    history: HistorySettings = HistorySettings()
    router: RouterSettings = RouterSettings()
    journal: JournalSettings = JournalSettings()
    alerts: AlertSettings = AlertSettings()
    audit: AuditSettings = AuditSettings()
    logging: LoggingSettings = LoggingSettings()
    process: ProcessSettings = ProcessSettings()
    source: SourceSettings = SourceSettings()

    _write_name: Callable[[tuple[str, ...]], str] = PrivateAttr(default=".".join)

    @field_validator("secret", "accepted_secrets")
    @classmethod
    def _are_long_enough(cls, value: SecretStr | list[SecretStr] | None) -> SecretStr | list[SecretStr] | None:
        for secret in value if isinstance(value, list) else [value]:
            if secret is not None and len(secret.get_secret_value()) < SECRET_CHARACTERS:
                raise ValueError(f"a secret must have {SECRET_CHARACTERS} characters or more")
            if secret is not None and len(secret.get_secret_value().splitlines()) > 1:
                raise ValueError(f"a secret is one line; list others in {PREFIX}ACCEPTED_SECRETS")
        return value

    @field_validator("accepted_secrets")
    @classmethod
    def _are_few(cls, value: list[SecretStr]) -> list[SecretStr]:
        if len(value) >= MAX_SECRETS:
            raise ValueError(f"{MAX_SECRETS - 1} are the most")
        return value

    @field_validator("token")
    @classmethod
    def _is_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _TOKEN.fullmatch(value.get_secret_value()):
            raise ValueError("a token must be one word of plain letters, as `solowire token` prints it")
        return value

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not is_http_url(value):
            raise ValueError("it must be one of http:// or https://, with a host")
        return value

    @field_validator("host")
    @classmethod
    def _has_no_brackets(cls, value: str) -> str:
        return strip_brackets(value)

    @field_validator("backplane", "backplane_bind")
    @classmethod
    def _is_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return value
        scheme, _, rest = value.partition("://")
        if scheme == "ipc" and rest:
            if _is_too_long(rest):
                raise ValueError(f"it is too long for a unix socket: {_IPC_PATH_LIMIT} bytes of path at most")
        elif scheme == "tcp":
            split_endpoint(rest)
        else:
            raise ValueError("it must be tcp://HOST:PORT or ipc:///PATH")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        if self.token is not None and self.token_file is not None:
            raise make_conflict("{} and {} are both set: which token? leave one out", "token", "token_file")
        if self.port and self.port + self.shards > 65535:
            raise make_conflict(
                f"{{}}: {self.port} leaves no room for the ports of {self.shards} shards after it ({{}})",
                "port",
                "shards",
            )
        if self.backplane_bind is not None and (self.backplane or "").partition(":")[0] != "tcp":
            raise make_conflict("{} is for a router of several hosts: set {} to tcp://…", "backplane_bind", "backplane")
        if self.is_networked and is_wildcard(split_endpoint(self.backplane_address.removeprefix("tcp://"))[0]):
            raise make_conflict(
                f"{{}}: nobody can connect to all addresses; name the router's one, and have {PREFIX}BACKPLANE_BIND be "
                "this",
                "backplane",
            )
        return self

    def name_setting(self, path: str) -> str:
        """A setting's name as the user wrote it, for what is said of it later. path: such as `shard.flush.high_ms`."""
        return self._write_name(tuple(path.split(".")))

    def is_set(self, path: str) -> bool:
        """Whether somebody has said what a setting that has no default is. path: as of `name_setting`."""
        return reduce(getattr, path.split("."), self) is not None

    def set_writer(self, write_name: Callable[[tuple[str, ...]], str]) -> None:
        """How names were written where these settings were read."""
        self._write_name = write_name

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
        if _is_too_long(path):
            raise ConfigError(f"the data directory's path is too long for a unix socket: {path}; choose a shorter one")
        return f"ipc://{path}"

    @property
    def is_networked(self) -> bool:
        """Whether the processes of the system may be on several hosts: the backplane is tcp."""
        return self.backplane is not None and self.backplane.startswith("tcp://")

    def find_advertised_host(self) -> str:
        """Under which address the others reach this process. Raises ConfigError if they can't under what is set."""
        if self.listen.advertised_host is not None:
            return self.listen.advertised_host
        if not self.is_networked:  # all are on this machine
            return find_own_address(self.host)
        router, _ = split_endpoint(self.backplane_address.removeprefix("tcp://"))
        fault = ""
        if is_wildcard(self.host):
            fault = "stands for all addresses of this machine, and the other hosts need one of them"
        elif is_loopback(self.host) and not is_loopback(router):
            fault = "can't be reached from other hosts"
        if fault:
            setting = f"{PREFIX}LISTEN__ADVERTISED_HOST"
            raise ConfigError(f"{self.name_setting('host')}: {self.host} {fault}; set {setting} to the one that can be")
        return self.host

    @property
    def router_address(self) -> str:
        """Where the router listens. Raises ConfigError as `backplane_address` does."""
        return self.backplane_bind or self.backplane_address

    def find_shard_api(self, index: int) -> tuple[str, int] | Path:
        """Where a shard's HTTP API listens: host and port (0 lets the system choose), or a Unix socket."""
        port = self.listen.api_port
        if port is None and self.shard.api_port is not None:
            port = self.shard.api_port and self.shard.api_port + index
        if port is None and not self.is_networked:
            return self.run_dir.absolute() / f"s{index}"
        # Gateways ask it, which are on other hosts.
        return self.listen.api_host or (self.host if self.is_networked else LOCAL_HOST), port or 0

    @property
    def shard_url(self) -> str:
        """The template of what clients are told."""
        if self.gateway.shard_url is not None:
            return self.gateway.shard_url
        return f"{{scheme}}://{{{'shard_host' if self.is_networked else 'host'}}}:{{port}}/ws"

    def find_shard_port(self, index: int) -> int:
        """0 lets the system choose."""
        if self.shard.port is not None:
            return self.shard.port
        return self.port + 1 + index if self.port else 0

    @property
    def router_metrics_port(self) -> int | None:
        """Where the router serves its metrics, 0 if the system is to choose; None if there is no room for a default."""
        if self.listen.api_port is not None:
            return self.listen.api_port
        if self.router.metrics_port is not None or not self.port:
            return self.router.metrics_port or 0
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
        return (init_settings,)


def _is_too_long(path: str) -> bool:
    return len(os.fsencode(path)) > _IPC_PATH_LIMIT
