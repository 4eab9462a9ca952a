"""Python-backend models that run inside Triton.

This package is copied into each published version as `tidemill_model`, so that a version runs as it was published
whatever is installed later. It therefore imports nothing of Tidemill's, and its modules import each other relatively;
`prompts` is replaced by `services.kit.prompts`, which training uses, too.
Inside Triton the backend itself provides `triton_python_backend_utils`.
"""
