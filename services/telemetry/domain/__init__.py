"""Rules for log lines and spans: levels, days, identities, queries, pages."""
