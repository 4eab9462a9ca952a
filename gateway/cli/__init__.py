"""The command line `tidemill`: speaks to the gateway's gRPC door, and to the stack on this machine."""
