"""Crawls of web pages: which address is next, how it is fetched, and a process of its own that reads what came."""
