"""Shared kernel of the services: it knows transports and conventions, and no service."""
