"""The tracer of this process, as the environment says by OpenTelemetry's own names.

What it keeps true: nothing of OpenTelemetry is imported unless an endpoint is set. What the environment says wrongly is
one sentence at the start, and never silence.
"""

from __future__ import annotations

from collections.abc import Mapping

from solowire.algorithms.hosts import is_http_url
from solowire.errors import ConfigError
from solowire.observability.exporter_variables import check_exporter
from solowire.observability.tracer import Tracer, TracerSettings

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLER, _SAMPLER_ARG = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_SAMPLERS: Mapping[str, tuple[bool, float | None]] = {
    "parentbased_always_off": (True, 0.0),
    "parentbased_always_on": (True, 1.0),
    "parentbased_traceidratio": (True, None),
    "always_off": (False, 0.0),
    "always_on": (False, 1.0),
    "traceidratio": (False, None),
}
"""OpenTelemetry's own, the default first: whether a publisher has a say, and the ratio where it is fixed."""


def read_tracer_settings(environment: Mapping[str, str]) -> TracerSettings | None:
    """None if no endpoint is set, or tracing is turned off. Raises ConfigError."""
    name = next((name for name in ENDPOINTS if environment.get(name, "").strip()), None)
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip()
    is_disabled = disabled.lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name is None or is_disabled or exporter == "none":
        return None
    if disabled.lower() not in ("", "false"):
        raise ConfigError(f"OTEL_SDK_DISABLED: {disabled!r} is neither true nor false")
    if exporter != "otlp":
        raise ConfigError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not known here; there are otlp and none")
    url = environment[name].strip()
    if not is_http_url(url):
        raise ConfigError(f"{name}: {url!r} is no URL of a collector, such as http://127.0.0.1:4318")
    for protocol in _PROTOCOLS:
        if environment.get(protocol, "").strip() not in ("", "http/protobuf"):
            raise ConfigError(
                f"{protocol}: {environment[protocol]!r} is not supported; set http/protobuf, and the port for it in "
                f"{name}, which is 4318 mostly"
            )
    check_exporter(environment)
    return _read_sampler(environment)


def _read_sampler(environment: Mapping[str, str]) -> TracerSettings:
    sampler = environment.get(_SAMPLER, "").strip() or next(iter(_SAMPLERS))
    if sampler not in _SAMPLERS:
        raise ConfigError(f"{_SAMPLER}: {sampler!r} is not known here; there are {', '.join(_SAMPLERS)}")
    is_parent_based, ratio = _SAMPLERS[sampler]
    if ratio is not None:
        return TracerSettings(is_parent_based, ratio)
    argument = environment.get(_SAMPLER_ARG, "").strip() or "1"
    try:
        ratio = float(argument)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"{_SAMPLER_ARG}: {argument!r} is no part of 1, such as 0.01 for one in a hundred")
    return TracerSettings(is_parent_based, ratio)


def open_tracer(environment: Mapping[str, str], role: str, instance: str) -> Tracer | None:
    """The tracer of a process; None if no endpoint is set.

    role: `gateway`, `router` or `shard`. instance: the process's name, such as `shard-0`. Raises ConfigError.
    """
    settings = read_tracer_settings(environment)
    if settings is None:
        return None
    try:
        from solowire.observability.otlp_tracer import OtlpTracer
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            f"{' or '.join(ENDPOINTS)} is set, and {error.name} is not installed: install solowire[otel], or unset it"
        ) from None
    return OtlpTracer(settings, role, instance)
