"""What is true of records and imports whatever brings them."""
