"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

# Few examples, because each works on arrays; no deadline, because the first call of a BLAS routine is slow.
settings.register_profile(
    "arrays", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("arrays")
