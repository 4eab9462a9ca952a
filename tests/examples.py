"""Number of examples that Hypothesis tries: a fifth by default, all with `--hypothesis-profile thorough`.

`make test` runs for every change and tries few; `make faults` tries all. No profile has a deadline, since tests judge
results, not the speed of this machine.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# By name of the profile: the percentage of a test's examples. A test without a number of its own has 100.
_PROFILES = {"quick": 20, "thorough": 100}
_FEWEST = 10


def register_profiles() -> None:
    """Registers the profiles and loads `quick`."""
    for name, percent in _PROFILES.items():
        settings.register_profile(
            name, deadline=None, max_examples=percent, suppress_health_check=[HealthCheck.too_slow]
        )
    settings.load_profile("quick")


def examples(count: int) -> settings:
    """Settings of a test that tries `count` examples in a thorough run, and its profile's share of them otherwise."""
    percent = settings.get_profile(settings.get_current_profile_name()).max_examples
    return settings(max_examples=max(min(count, _FEWEST), count * percent // 100))
