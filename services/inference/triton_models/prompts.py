"""The kit's prompts under the name that they have inside Triton: there this file is the kit's module itself."""

from services.kit.prompts import TOO_LONG, PromptError, Prompts, chat_of

__all__ = ["TOO_LONG", "PromptError", "Prompts", "chat_of"]
