"""The kit's grammars under the name that they have inside Triton: there this file is the kit's module itself."""

from services.kit.json_grammar import SchemaError, call_grammar, grammar_of

__all__ = ["SchemaError", "call_grammar", "grammar_of"]
