"""The tests, and what they share."""

import pytest

# Shared helpers contain assertions, which should be explained in failures like those of tests. Before the first import.
pytest.register_assert_rewrite("tests.load", "tests.processes", "tests.waiting", "tests.faults.reconciler")
