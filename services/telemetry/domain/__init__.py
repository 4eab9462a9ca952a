"""What is true of log lines and spans, whatever the transport: levels, days, identities, queries, pages."""
