"""Python-backend models that run inside Triton.

This package is copied into each published version as `tidemill_model`; a copy of another release is replaced before
the version is loaded again. It imports nothing of Tidemill's, and its modules import each other relatively;
`engine`, `json_grammar`, `prompts` and `spans` are replaced by the kit's modules of those names, which training uses,
too.
Inside Triton the backend itself provides `triton_python_backend_utils`.
"""
