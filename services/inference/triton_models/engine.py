"""The kit's way to open models under the name that it has inside Triton: there this file is the kit's module itself."""

from services.kit.engine import (
    EMBEDDING,
    FAILED,
    INVALID,
    LOGITS,
    QUEUE_FULL,
    RUNTIME,
    TOKENIZERS,
    import_openvino,
    open_encoder,
    open_language_model,
)

__all__ = [
    "EMBEDDING",
    "FAILED",
    "INVALID",
    "LOGITS",
    "QUEUE_FULL",
    "RUNTIME",
    "TOKENIZERS",
    "import_openvino",
    "open_encoder",
    "open_language_model",
]
