"""Renders messages of the services for the terminal; makes no calls."""
