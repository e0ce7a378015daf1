"""How many examples Hypothesis tries: a few of each by default, all of them with `--hypothesis-profile explore`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

EXPLORE, DEFAULT = "explore", "few"
_SHARE = 5
_LEAST = 10


def register_profiles() -> None:
    """Makes the profiles, and loads the default one whatever the environment says.

    A change is judged by what it does, not by luck: the default one takes the same examples each time. With the
    variable CI, Hypothesis has a profile of its own, from which neither of these takes anything.
    """
    base = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
    settings.register_profile(EXPLORE, base, derandomize=False, print_blob=True)
    settings.register_profile(DEFAULT, base, derandomize=True, max_examples=100 // _SHARE)
    settings.load_profile(DEFAULT)


def examples(count: int) -> int:
    """The number of examples of a test that needs so many where all are looked at."""
    if settings.get_current_profile_name() == EXPLORE:
        return count
    return min(count, max(_LEAST, count // _SHARE))
