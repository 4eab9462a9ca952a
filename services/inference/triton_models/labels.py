"""The kit's labels under the name that they have inside Triton: there this file is the kit's module itself."""

from services.kit.labels import assigned, probabilities

__all__ = ["assigned", "probabilities"]
