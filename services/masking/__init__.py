"""What masks personal data in texts, for cleaning, the data plane and the loop. Knows no service and does no I/O."""
