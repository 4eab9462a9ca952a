"""Talks to Triton for answers: what the data plane needs, whatever its doors. A library without a process."""
