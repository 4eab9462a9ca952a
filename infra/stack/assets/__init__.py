"""Files that the stack and the example pipelines need, fetched by digest through ordinary package clients."""

from infra.stack.assets.prepare import Part, parts, prepare
from infra.stack.assets.store import Progress

__all__ = ["Part", "Progress", "parts", "prepare"]
