"""These tests need a cluster, which `make test-kubernetes` starts, and are collected there alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.release import Release, install_release

FOLDER = os.environ.get("KUBERNETES_TESTS", "")
collect_ignore_glob = [] if FOLDER else ["test_*.py"]


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster(Path(FOLDER))


@pytest.fixture(scope="session")
def release(cluster: Cluster) -> Release:
    """The chart, installed with tests/kubernetes/values.yaml. Tests change it, each from what it finds."""
    return asyncio.run(install_release(cluster))
