"""What lasts is said at once, when it changes, and once a minute."""

from __future__ import annotations

from solowire.sources.agent.reminder import REMIND_S, Reminder


def test_what_lasts_is_said_at_once_and_once_a_minute() -> None:
    now = 1_000.0
    reminder = Reminder(lambda: now)
    assert reminder.is_due("missing")
    now += REMIND_S - 0.1
    assert not reminder.is_due("missing")
    now += 0.1
    assert reminder.is_due("missing")
    assert reminder.is_due("no rights")
    assert not reminder.is_due("no rights")
    reminder.clear()
    assert reminder.is_due("no rights")
