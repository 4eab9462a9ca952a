"""Shared kernel of the services. It knows transports and conventions, but none of the services."""
