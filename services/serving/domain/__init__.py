"""Prompts, answers and routes, whatever serves them."""
