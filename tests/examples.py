"""How many examples Hypothesis tries: a fifth by default, all of them with `--hypothesis-profile thorough`.

`make test` is for every change and tries few; `make faults` tries all. What is judged is what comes out, not how fast
this machine is.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Name of a profile, and the share of the examples in percent: without a number of its own a test has a hundred.
_PROFILES = {"quick": 20, "thorough": 100}
_FEWEST = 10


def register_profiles() -> None:
    """Makes the profiles known, and loads `quick`."""
    for name, percent in _PROFILES.items():
        settings.register_profile(
            name, deadline=None, max_examples=percent, suppress_health_check=[HealthCheck.too_slow]
        )
    settings.load_profile("quick")


def examples(count: int) -> settings:
    """Settings of a test that tries `count` examples in a thorough run, and its profile's share of them otherwise."""
    percent = settings.get_profile(settings.get_current_profile_name()).max_examples
    return settings(max_examples=max(min(count, _FEWEST), count * percent // 100))
