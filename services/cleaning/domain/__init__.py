"""What is true of records, recipes and data sets, whatever the transport."""
