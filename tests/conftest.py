"""How Hypothesis looks for examples: the same ones each time, and however slow the machine is.

A change is judged by what it does, not by luck. `pytest --hypothesis-profile explore` looks for other examples.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")
