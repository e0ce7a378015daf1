"""The judge of an overloaded system finds what is wrong, and nothing else."""

from __future__ import annotations

from array import array

import pytest

from bench.overload_clients import Client, Journal, Visit
from bench.verdicts import (
    SLACK_S,
    faults_of,
    jain_index,
    judge_durable,
    judge_fairness,
    judge_limit,
    longest_absence,
    most_at_once,
)
from bench.ws_client import FrameReader


def visit(began: float, heard: float, *durable: int, start: int = 0, cursor: int = 0) -> Visit:
    return Visit(began, heard, start, True, cursor, array("Q", durable), ended_at=heard)


def client(*visits: Visit) -> Client:
    found = Client(1, "", "viewer", [], Journal(lambda: 0.0, FrameReader()))
    found.visits = list(visits)
    return found


def test_fairness_is_one_between_equals_and_less_otherwise() -> None:
    """Jain's index is 1 for equal shares, 1/n for one who has it all, and taken over shares by weight."""
    assert jain_index([5, 5, 5]) == pytest.approx(1.0)
    assert jain_index([9, 0, 0]) == pytest.approx(1 / 3)
    assert judge_fairness([{"a": 200, "b": 100}], {"a": 2.0, "b": 1.0}).is_met
    assert not judge_fairness([{"a": 150, "b": 150}], {"a": 2.0, "b": 1.0}).is_met


def test_connections_at_the_same_time_are_counted() -> None:
    """Two that overlap for certain are two; one that may have ended before the other began is one."""
    assert most_at_once([visit(0, 10), visit(5, 15)]) == 2
    assert most_at_once([visit(0, 10), visit(10 - SLACK_S, 15)]) == 1
    assert not judge_limit(1, [1], 2).is_met
    assert not judge_limit(1, [1, 2], 1).is_met
    assert judge_limit(2, [1, 2], 2).is_met


def test_the_longest_absence_is_found_wherever_it_is() -> None:
    """Before the first connection, between two of them, and after the last."""
    assert longest_absence(client(visit(4, 10), visit(11, 20)), 0, 20) == 4
    assert longest_absence(client(visit(0, 10), visit(13, 20)), 1, 20) == 3
    assert longest_absence(client(visit(0, 10)), 0, 20) == 10
    assert longest_absence(client(), 0, 20) == 20


def test_lost_repeated_and_disordered_events_are_found() -> None:
    """Every acknowledged event between a visit's start and its cursor is due once, in order; others are not."""
    acknowledged = [2, 4, 6, 8]
    assert faults_of(visit(0, 1, 4, 6, start=2, cursor=7), acknowledged) == (0, 0, 0)
    assert faults_of(visit(0, 1, 4, 5, 6, start=2, cursor=7), acknowledged) == (0, 0, 0)
    assert faults_of(visit(0, 1, 6, start=2, cursor=7), acknowledged) == (1, 0, 0)
    assert faults_of(visit(0, 1, 2, 4, 6, 6, start=2, cursor=7), acknowledged) == (0, 2, 0)
    assert faults_of(visit(0, 1, 6, 4, start=2, cursor=7), acknowledged) == (0, 0, 1)
    assert not judge_durable([client(visit(0, 1, start=0, cursor=9))], acknowledged).is_met
