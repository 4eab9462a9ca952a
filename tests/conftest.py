"""For all tests: Hypothesis judges what comes out, not how fast this machine is at the moment."""

from hypothesis import HealthCheck, settings

settings.register_profile("tidemill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tidemill")
