"""The calls that are answered with a model, whatever the transport before them."""
