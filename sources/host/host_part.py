"""The part that measures a host, and alerts when it is unwell.

What it keeps true: measuring is done in a thread, so that a file system that doesn't answer holds nothing else up.
While it does not come back, nothing is measured anew, and the status says so.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from solowire.runtime.settings.source_settings import HostSettings
from solowire.sources.agent.event_outlet import EventOutlet
from solowire.sources.agent.event_time import format_now
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.agent.stop_wait import wait_for_stop
from solowire.sources.host.host_measurement import HostMeter
from solowire.sources.host.threshold_alert import AlertChange, Level, ThresholdAlert, Thresholds

FIRST_S = 1.0
"""Between the first measurement, which has no rates, and the second, which is published."""

REPEAT_S = 60.0
"""How often it is said that a measurement does not come back."""

logger = structlog.get_logger()


class HostPart:
    """Publishes `system_metrics` every `interval_s`, and `health_alert` when one begins, changes or is over."""

    name = "host"

    def __init__(self, settings: HostSettings, outlet: EventOutlet, meter: HostMeter | None = None) -> None:
        self._settings = settings
        self._outlet = outlet
        self._meter = meter
        self._alerts: dict[tuple[str, str], _RunningAlert] = {}
        self._seen: set[str] = set()  # processes
        self._status = PartStatus(self.name)  # until it runs

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        """Measures until `stop` is set. Raises PublishRefused."""
        self._status = status
        meter = self._meter or HostMeter(self._settings.disks, self._settings.processes)
        await self._measure(meter, status, stop)
        wait = min(FIRST_S, self._settings.interval_s)
        while not await wait_for_stop(stop, wait):
            wait = self._settings.interval_s
            measured = await self._measure(meter, status, stop)
            if stop.is_set():
                return
            status.read_count += 1
            if "cpu_usage" not in measured:
                status.set_waiting("the usage of the CPU can't be read here (/proc/stat)")
                continue
            status.set_running()
            status.count_offered(await self._outlet.offer("system_metrics", {"host": self._outlet.server, **measured}))
            await self._judge(measured)

    async def _measure(self, meter: HostMeter, status: PartStatus, stop: asyncio.Event) -> dict[str, Any]:
        """What is measured; nothing if `stop` is set before that."""
        work = _start_in_thread(meter.measure)
        stopping = asyncio.ensure_future(stop.wait())
        both: set[asyncio.Future[Any]] = {work, stopping}
        timeout = self._settings.interval_s
        while True:
            try:
                await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                stopping.cancel()
                raise
            if work.done() or stopping.done():
                stopping.cancel()
                return work.result() if work.done() else {}
            timeout = REPEAT_S
            reason = f"measuring takes longer than {self._settings.interval_s:g} s: a file system does not answer"
            logger.warning(
                "host_measurement_slow", reason=reason, hint="name the file systems to measure in source.host.disks"
            )
            status.set_waiting(reason)

    async def _judge(self, measured: dict[str, Any]) -> None:
        settings = self._settings
        await self._note(
            "cpu_usage", "", measured.get("cpu_usage"), settings.cpu_warning_percent, settings.cpu_critical_percent
        )
        await self._note(
            "memory_usage",
            "",
            measured.get("memory_usage"),
            settings.memory_warning_percent,
            settings.memory_critical_percent,
        )
        await self._note("swap_usage", "", measured.get("swap_usage"), settings.swap_warning_percent)
        for disk in measured.get("disks", ()):
            await self._note(
                "disk_usage", disk["path"], disk["usage"], settings.disk_warning_percent, settings.disk_critical_percent
            )
        cores = measured.get("cpu_count")
        load = measured.get("load_1m")
        if cores and load is not None:
            await self._note("load_per_core", "", round(load / cores, 2), settings.load_warning_per_core, ease=0.2)
        running = {process["name"] for process in measured.get("processes", ())}
        self._seen |= running
        for name in sorted(self._seen):  # one that was never there is not missed
            await self._note("process_missing", name, float(name not in running), 0.0, 1.0, ease=0.5)

    async def _note(
        self,
        metric: str,
        subject: str,
        value: float | None,
        warning: float,
        critical: float = 0.0,
        *,
        ease: float | None = None,
    ) -> None:
        alert = self._alerts.get((metric, subject))
        if alert is None:
            limits = Thresholds(
                warning, critical, self._settings.ease_percent if ease is None else ease, self._settings.alert_after
            )
            alert = self._alerts[metric, subject] = _RunningAlert(ThresholdAlert(limits))
        change = alert.watch.note_value(value)
        if change is None:
            return
        if change.old is Level.calm:
            alert.id, alert.began_at = str(uuid.uuid4()), format_now()
        is_over = change.new is Level.calm
        message = _describe(metric, subject, self._outlet.server, change)
        logger.info("health_alert", message=message, level=change.new.name)
        data = {
            "level": "info" if is_over else change.new.name,
            "message": message,
            "id": alert.id,
            "type": metric,
            "host": self._outlet.server,
            "metric": metric,
            "subject": subject,
            "value": change.value,
            "threshold": change.threshold,
            "created_at": alert.began_at,
            "resolved": is_over,
        }
        await self._outlet.publish("health_alert", {name: value for name, value in data.items() if value != ""})
        self._status.published_count += 1


def _start_in_thread(work: Callable[[], dict[str, Any]]) -> asyncio.Future[dict[str, Any]]:
    """Its result, by a daemon thread: one that never comes back must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[dict[str, Any]] = loop.create_future()

    def settle(result: dict[str, Any] | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result or {})

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as fault:
            error = fault
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="host measurement", daemon=True).start()
    return future


class _RunningAlert:
    def __init__(self, watch: ThresholdAlert) -> None:
        self.watch = watch
        self.id = ""
        self.began_at = ""


_WORDS = {
    "cpu_usage": "the CPU is used to {value:g} %",
    "memory_usage": "memory is used to {value:g} %",
    "swap_usage": "swap is used to {value:g} %",
    "disk_usage": "{subject} is full to {value:g} %",
    "load_per_core": "the load per core is {value:g}",
}


def _describe(metric: str, subject: str, host: str, change: AlertChange) -> str:
    if metric == "process_missing":
        return f"{host}: {subject} " + ("runs again" if change.new is Level.calm else "is not running")
    words = _WORDS[metric].format(subject=subject, value=change.value)
    if change.new is Level.calm:
        return f"{host}: {words} again, below the threshold of {change.threshold:g}"
    return f"{host}: {words}; {change.new.name} from {change.threshold:g} on"
