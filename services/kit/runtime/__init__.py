"""Start and ordered stop of a service process."""
