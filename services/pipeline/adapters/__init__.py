"""The database, the peers and the bus behind the ports."""
