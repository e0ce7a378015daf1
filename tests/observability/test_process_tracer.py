"""The tracer of a process, as the environment says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from solowire.errors import ConfigError
from solowire.observability.process_tracer import open_tracer, read_tracer_settings
from solowire.observability.tracer import TracerSettings

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_TRACES_SAMPLER": "nonsense"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_there_is_no_tracer(environment: dict[str, str]) -> None:
    """Nor where it is turned off; what else is set is not looked at."""
    assert open_tracer(environment, "router", "router") is None


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, TracerSettings(True, 0.0)),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, TracerSettings(True, 0.0)),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, TracerSettings(True, 1.0)),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, TracerSettings(False, 1.0)),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, TracerSettings(False, 0.0)),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
            TracerSettings(True, 0.01),
        ),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, TracerSettings(False, 1.0)),
    ],
)
def test_the_sampler_is_that_of_the_environment(environment: dict[str, str], settings: TracerSettings) -> None:
    """By OpenTelemetry's names; by default publishers alone say what is recorded."""
    assert read_tracer_settings(ENDPOINT | environment) == settings


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:99999"}, "no URL"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "zipkin"}, "otlp"),
        (ENDPOINT | {"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "parentbased_traceidratio"),
        (ENDPOINT | {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1 %"}, "1 %"),
        (ENDPOINT | {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"}, "0.01"),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "yes"}, "OTEL_SDK_DISABLED: 'yes'"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nope.pem"}, "OTEL_EXPORTER_OTLP_CERTIFICATE: /nope.pem"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/"}, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE: /"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "/nope"}, "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY: /nope"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "OTEL_EXPORTER_OTLP_COMPRESSION: 'zip'"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT: 'soon'"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "10000"}, "seconds"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_TIMEOUT": "0"}, "seconds"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "a=b,secret"}, "OTEL_EXPORTER_OTLP_HEADERS: number 2"),
        (ENDPOINT | {"OTEL_RESOURCE_ATTRIBUTES": "deployment"}, "OTEL_RESOURCE_ATTRIBUTES: number 1"),
        (ENDPOINT | {"OTEL_BSP_SCHEDULE_DELAY": "5s"}, "OTEL_BSP_SCHEDULE_DELAY: '5s'"),
        (ENDPOINT | {"OTEL_BSP_EXPORT_TIMEOUT": "-5"}, "OTEL_BSP_EXPORT_TIMEOUT: '-5'"),
    ],
)
def test_what_is_wrong_is_named_with_its_variable(environment: dict[str, str], said: str) -> None:
    """A process doesn't start with what it would have to ignore."""
    with pytest.raises(ConfigError, match=r"^OTEL_") as raised:
        read_tracer_settings(environment)
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)


def test_what_is_right_is_taken() -> None:
    """Each of the exporter's variables, as its documents have it."""
    environment = ENDPOINT | {
        "OTEL_SDK_DISABLED": "false",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": __file__,
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2.5",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x, tenant=,",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=live,team=dns",
        "OTEL_BSP_SCHEDULE_DELAY": "1000",
    }
    assert read_tracer_settings(environment) == TracerSettings(True, 0.0)


def test_opentelemetry_is_imported_with_an_endpoint_alone() -> None:
    """All roles and the SDK come without it; who sets an endpoint and has not installed it is told so."""
    code = """
import sys
sys.modules["opentelemetry"] = None
import solowire.gateway.server, solowire.router.server, solowire.workers.server, solowire.sdk.publisher
from solowire.errors import ConfigError
from solowire.observability.process_tracer import open_tracer
assert open_tracer({}, "router", "router") is None
assert not any(name.startswith("opentelemetry.") for name in sys.modules)
try:
    open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "router", "router")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "solowire[otel]" in done.stdout
