"""What the command line shows, made from messages of the contracts; no call is made here."""
