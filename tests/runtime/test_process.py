"""What a process asks of the kernel, asked of a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from solowire.runtime import process

_CHILD = """
import json
from pathlib import Path
from solowire.runtime.process import merge_memory
found = merge_memory()
stat = Path("/proc/self/ksm_stat")
print(json.dumps([found, stat.read_text() if stat.exists() else ""]))
"""


_LIMITED = """
import json, resource, sys
from solowire.runtime.process import raise_file_limit
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
print(json.dumps([hard, raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""


def test_a_process_takes_all_open_files_that_it_may_have() -> None:
    """The soft limit, which shells leave low, is raised to the hard one."""
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, timeout=30, check=True)
    hard, raised, limits = json.loads(done.stdout)
    assert raised == hard
    assert limits == [hard, hard]


def test_memory_is_offered_for_merging_where_the_kernel_takes_it() -> None:
    """The kernel knows afterwards that this process's pages may be merged; what it could not do has its reason."""
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, timeout=30, check=True)
    found, stat = json.loads(done.stdout)
    host = Path("/sys/kernel/mm/ksm/run")
    assert found["host_run"] == (host.exists() and host.read_text().strip() == "1")
    if not found["offered"]:
        assert found["reason"]
        pytest.skip(f"this kernel doesn't take it: {found['reason']}")
    if "ksm_merge_any" not in stat:
        pytest.skip("this kernel doesn't say whose memory is offered")
    assert "ksm_merge_any: yes" in stat


@pytest.mark.parametrize(("asked", "period"), [("1500000", 0.5), ("30000000", 1.0), ("", 1.0), ("0", 1.0), ("x", 1.0)])
def test_signs_of_life_come_as_often_as_asked(asked: str, period: float) -> None:
    """Three fall into the time after which silence is taken for stuck, and there is one a second at least."""
    assert process.Notifier({"WATCHDOG_USEC": asked}).period == period
