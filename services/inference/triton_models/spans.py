"""The kit's spans under the name that they have inside Triton: there this file is the kit's module itself."""

from services.kit.spans import Span, spans_of

__all__ = ["Span", "spans_of"]
