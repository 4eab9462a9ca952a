"""The command line `tidemill`: a client of the gateway's gRPC API and of the stack on this machine."""
