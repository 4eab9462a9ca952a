"""Turns a JSON schema into a grammar that the engine follows, so that an answer is always valid against the schema.

The engine (OpenVINO GenAI with XGrammar) reads schemas itself, but one that it cannot read breaks its pipeline for
good, and it lets a model write white space without end. A grammar made here is always one that the engine can read, and
bounded in size; what a schema asks for and a grammar cannot express is refused by name. Notation: XGrammar's EBNF, https://xgrammar.mlc.ai/docs.

It goes with each published version into Triton; it therefore imports nothing of Tidemill's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

MAX_SCHEMA_BYTES = 64 * 1024
# A program sends the same few schemas with all of its calls.
_KEPT = 64
_MAX_RULES = 4000
_MAX_DEPTH = 64
# A length of 1000 costs the engine 2.2 s of processor time (vocabulary of 49,000), and every answer waits meanwhile.
_MAX_LENGTHS = 256
_MAX_DIGITS = 15
_NOTHING = '""'

CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
"""What stands around a call of a function in an answer."""

_ANNOTATIONS = frozenset(
    {
        "$schema",
        "$id",
        "$comment",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
    }
)
_KEYWORDS = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_TYPES = tuple(_KEYWORDS)
_DAYS = (
    '("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])',
    '("0" [13-9] | "1" [0-2]) "-" ("29" | "30")',
    '("0" [13578] | "1" [02]) "-31"',
)
_DATE = f'[0-9]{{4}} "-" ({" | ".join(_DAYS)})'
_TIME = '("0" [0-9] | "1" [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})?'
_ZONE = '("Z" | [+-] ("0" [0-9] | "1" [0-3]) ":" [0-5] [0-9])'
_OCTET = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9]? [0-9])'
_HEX = "[0-9a-f]"
_FORMATS = {
    "date": _DATE,  # without the 29th of February
    "time": f"{_TIME} {_ZONE}",
    "date-time": f'{_DATE} "T" {_TIME} {_ZONE}',
    "uuid": '"-" '.join((f"{_HEX}{{8}} ", f"{_HEX}{{4}} ", f"{_HEX}{{4}} ", f"{_HEX}{{4}} ", f"{_HEX}{{12}}")),
    "ipv4": f'{_OCTET} "." {_OCTET} "." {_OCTET} "." {_OCTET}',
    "email": '[a-zA-Z0-9] [a-zA-Z0-9._+-]{0,40} "@" [a-zA-Z0-9] [a-zA-Z0-9-]{0,40} ("." [a-zA-Z0-9]{2,20}){1,3}',
}
_COMMON = {
    # A space after a comma or a colon, as most JSON that models have read; more would only be a way to write nothing.
    "comma": '"," " "?',
    "colon": '":" " "?',
    "char": r'[^"\\\x00-\x1f\x7f] | "\\" ["\\/bfnrt]',
    "string": r'"\"" char* "\""',
    "integer": f'"-"? ("0" | [1-9] [0-9]{{0,{_MAX_DIGITS - 1}}})',
    "number": f'integer ("." [0-9]{{1,{_MAX_DIGITS}}})? ([eE] [+-]? [0-9]{{1,2}})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "pair": "string colon value",
    "object": '"{" (pair (comma pair)*)? "}"',
    "array": '"[" (value (comma value)*)? "]"',
}
_USES = {
    "string": ("char",),
    "number": ("integer",),
    "value": ("object", "array", "string", "number", "boolean", "null"),
    "pair": ("string", "colon", "value"),
    "object": ("pair", "comma"),
    "array": ("value", "comma"),
}


class SchemaError(ValueError):
    """A schema that is not valid, or asks for more than is covered. `path` is a JSON pointer into it."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path or 'the schema'}: {message}")
        self.path, self.message = path, message


@lru_cache(_KEPT)
def grammar_of(schema: str) -> str:
    """The grammar of all JSON values that are valid against a schema and have its properties in their order.

    Covered: type (also several), properties, required, additionalProperties, items, prefixItems, minItems, maxItems,
    enum, const, anyOf, oneOf (as anyOf), allOf of one schema, $ref inside the schema, minLength, maxLength, format
    (date, time, date-time, uuid, ipv4, email), and bounds of integers. An object that lists its properties gets others
    only if `additionalProperties` says so.

    Args:
        schema: JSON schema (2020-12) as JSON.

    Raises:
        SchemaError: it is not JSON, not a schema, too large, or asks for more than is covered.
    """
    if len(schema.encode()) > MAX_SCHEMA_BYTES:
        raise SchemaError("", f"is larger than {MAX_SCHEMA_BYTES} bytes.")
    try:
        root = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise SchemaError("", f"is not JSON: {error}.") from None
    return _Compiler(root).grammar()


@lru_cache(_KEPT)
def call_grammar(tools: str, choice: str) -> str:
    """The grammar of answers with a call of a function: `<tool_call>`, a JSON object of `name` and `arguments`,
    `</tool_call>`, as models of the Hermes and Qwen families write it. The arguments are valid against the function's
    `parameters`.

    Args:
        tools: JSON list of functions as OpenAI's API has them, each with a name of its own.
        choice: `required` for a call of any of them, a function's name for a call of that one, `auto` for any text,
            which a call may end.

    Raises:
        SchemaError: what they are is not such a list, or its parameters ask for more than is covered.
    """
    try:
        functions = [tool["function"] for tool in json.loads(tools)]
        schemas = {str(function["name"]): function.get("parameters") or {} for function in functions}
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise SchemaError("", f"is not a list of functions with names: {error!r}.") from None
    if choice not in ("auto", "required"):
        if choice not in schemas:
            raise SchemaError("", f"has no function {choice[:64]!r}.")
        schemas = {choice: schemas[choice]}
    compiler = _Compiler({})
    calls = [compiler.call(name, schema) for name, schema in schemas.items()]
    call = f'"\\n" ({" | ".join(calls)}) "\\n{CALL_END}"'
    if choice == "auto":
        begins = f'TagDispatch(("{CALL_BEGIN}", call), stop_eos=true, stop_str=(), loop_after_dispatch=false)'
    else:
        begins = f'"{CALL_BEGIN}" call'
    return f"root ::= {begins}\ncall ::= {call}\n{compiler.rules()}"


class _Compiler:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._lengths: set[tuple[int, int | None]] = set()
        # The reference that is being resolved, as long as nothing was written of its value; None inside a container.
        self._scope: str | None = "#"
        self._begins_with: dict[str, set[str]] = {}

    def grammar(self) -> str:
        """Every rule on a line; `root` first."""
        self._rules["root"] = ""
        self._rules["root"] = self._value(self._root, "", 0)
        self._refuse_circles()
        return self.rules()

    def rules(self) -> str:
        """Every rule so far on a line."""
        return "".join(f"{name} ::= {body}\n" for name, body in self._rules.items())

    def call(self, name: str, schema: Any) -> str:
        """An expression for the calls of a function; `schema` is of its arguments, and has references of its own."""
        self._root, self._scope, self._references, self._begins_with = schema, "#", {}, {}
        try:
            if not isinstance(schema, dict) or schema.get("type", "object") != "object":
                raise SchemaError("", "must be a schema of an object.")
            arguments = self._value({"type": "object", "additionalProperties": False, **schema}, "", 0)
            self._refuse_circles()
        except SchemaError as error:
            raise SchemaError(f"{name}.parameters{error.path}", error.message) from None
        begin = f'{{"name": {json.dumps(name)}, "arguments": '
        return f"{_quoted(begin)} {arguments} {_quoted('}')}"

    def _refuse_circles(self) -> None:
        """A value that begins with itself, such as {"anyOf": [{"$ref": "#"}]}, has no grammar."""
        ended: set[str] = set()

        def visit(pointer: str, open_: tuple[str, ...]) -> None:
            if pointer in open_:
                raise SchemaError(pointer[1:], "is defined by nothing but itself.")
            if pointer not in ended:
                for next_ in sorted(self._begins_with.get(pointer, ())):
                    visit(next_, (*open_, pointer))
                ended.add(pointer)

        for pointer in list(self._begins_with):
            visit(pointer, ())

    def _common(self, name: str) -> str:
        if name not in self._rules:
            self._rules[name] = _COMMON[name]
            for used in _USES.get(name, ()):
                self._common(used)
        return name

    def _rule(self, body: str, path: str) -> str:
        """A rule with this body. Equal ones are one: the engine takes up to seconds for one with a bounded length."""
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = self._reserve(path, "r")
            self._rules[name] = body
        return name

    def _reserve(self, path: str, prefix: str) -> str:
        if len(self._rules) >= _MAX_RULES:
            raise SchemaError(path, "makes the schema too large.")
        name = f"{prefix}{len(self._rules)}"
        self._rules[name] = ""
        return name

    def _value(self, schema: Any, path: str, depth: int) -> str:
        """An expression for the values of a schema."""
        if depth > _MAX_DEPTH:
            raise SchemaError(path, f"is nested deeper than {_MAX_DEPTH}.")
        if schema is True or schema == {}:
            return self._common("value")
        if not isinstance(schema, dict):
            raise SchemaError(path, "must be an object.")
        if "$ref" in schema:
            self._only(schema, path, {"$ref"})
            return self._reference(schema["$ref"], path, depth)
        for name in ("anyOf", "oneOf", "allOf"):
            if name in schema:
                self._only(schema, path, {name, "type"})
                return self._choice(schema[name], name, path, depth)
        if "const" in schema or "enum" in schema:
            self._only(schema, path, {"const", "enum", "type"})
            return self._literals(schema, path)
        self._only(schema, path, {"type"}.union(*_KEYWORDS.values()))
        types = self._types(schema, path)
        self._only(schema, path, {"type"}.union(*(_KEYWORDS[item] for item in types)))
        return _either([self._typed(item, schema, path, depth) for item in types])

    def _only(self, schema: dict[str, Any], path: str, known: set[str]) -> None:
        for name in sorted(schema.keys() - _ANNOTATIONS - known):
            raise SchemaError(f"{path}/{name}", "is not offered here; leave it out and check the answer yourself.")

    def _types(self, schema: dict[str, Any], path: str) -> Sequence[str]:
        given = schema.get("type")
        if given is None:
            fitting = [item for item in _TYPES if schema.keys() & _KEYWORDS[item]]
            if len(fitting) != 1:
                raise SchemaError(path, "needs a `type`.")
            return fitting
        types = given if isinstance(given, list) else [given]
        for item in types:
            if item not in _TYPES:
                raise SchemaError(f"{path}/type", f"must be one of {', '.join(_TYPES)}.")
        if not types or len(set(types)) != len(types):
            raise SchemaError(f"{path}/type", "must name each type once, and at least one.")
        return [str(item) for item in types]

    def _reference(self, pointer: Any, path: str, depth: int) -> str:
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            raise SchemaError(f"{path}/$ref", "must point into this schema, such as #/$defs/NAME.")
        if self._scope is not None:
            self._begins_with.setdefault(self._scope, set()).add(pointer)
        if pointer in self._references:
            return self._references[pointer]
        found = self._root
        for step in pointer[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise SchemaError(f"{path}/$ref", f"{pointer[:100]} is not in this schema.")
            found = found[key]
        name = self._references[pointer] = self._reserve(path, "d")
        outside, self._scope = self._scope, pointer
        self._rules[name] = self._value(found, pointer[1:], depth + 1)
        self._scope = outside
        return name

    def _choice(self, options: Any, keyword: str, path: str, depth: int) -> str:
        if not isinstance(options, list) or not options:
            raise SchemaError(f"{path}/{keyword}", "must be a list with at least one schema.")
        if keyword == "allOf" and len(options) > 1:
            raise SchemaError(f"{path}/allOf", "of several schemas is not offered; write them as one.")
        found = [self._value(item, f"{path}/{keyword}/{at}", depth + 1) for at, item in enumerate(options)]
        return self._rule(" | ".join(found), path)

    def _literals(self, schema: dict[str, Any], path: str) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list) or not values:
            raise SchemaError(f"{path}/enum", "must be a list with at least one value.")
        if len(values) > _MAX_RULES:
            raise SchemaError(f"{path}/enum", f"has more than {_MAX_RULES} values.")
        return self._rule(" | ".join(_quoted(_json(item)) for item in values), path)

    def _typed(self, kind: str, schema: dict[str, Any], path: str, depth: int) -> str:
        match kind:
            case "object" | "array":
                outside, self._scope = self._scope, None
                container = self._object if kind == "object" else self._array
                body = container(schema, path, depth)
                self._scope = outside
                return body
            case "string":
                return self._string(schema, path)
            case "integer":
                return self._integer(schema, path)
            case _:
                return self._common(kind)

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        more = schema.get("additionalProperties", not properties)
        if not isinstance(properties, dict):
            raise SchemaError(f"{path}/properties", "must be an object.")
        if not isinstance(required, list) or not all(isinstance(item, str) for item in required):
            raise SchemaError(f"{path}/required", "must be a list of names.")
        for name in required:
            if name not in properties:
                raise SchemaError(f"{path}/required", f"names {name[:100]!r}, which is not in `properties`.")
        colon, comma = self._common("colon"), self._common("comma")
        # From the last property to the first: what may follow if nothing (`empty`) or something (`begun`) was written.
        empty = begun = _NOTHING
        if more is not False:
            value = self._value(more, f"{path}/additionalProperties", depth + 1)
            pair = self._rule(f"{self._common('string')} {colon} {value}", path)
            empty = self._rule(f"({pair} ({comma} {pair})*)?", path)
            begun = self._rule(f"({comma} {pair})*", path)
        for name, inner in reversed(properties.items()):
            value = self._value(inner, f"{path}/properties/{_escaped(name)}", depth + 1)
            pair = self._rule(f"{_quoted(_json(name))} {colon} {value}", path)
            after = begun
            first, further = _sequence(pair, after), _sequence(comma, pair, after)
            if name not in required:
                first, further = f"{first} | {empty}", f"{further} | {after}"
            empty, begun = self._rule(first, path), self._rule(further, path)
        return self._rule(_sequence('"{"', empty, '"}"'), path)

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> str:
        comma = self._common("comma")
        fixed = schema.get("prefixItems", [])
        if not isinstance(fixed, list):
            raise SchemaError(f"{path}/prefixItems", "must be a list.")
        head = [self._value(item, f"{path}/prefixItems/{at}", depth + 1) for at, item in enumerate(fixed)]
        low, high = self._bounds(schema, path, "minItems", "maxItems")
        items = schema.get("items", not fixed)
        if items is False or (high is not None and high <= len(head)):
            if not low <= len(head) <= (len(head) if high is None else high):
                raise SchemaError(path, f"{len(head)} items are outside of `minItems` and `maxItems`.")
            return self._rule(f'"[" {f" {comma} ".join(head)} "]"' if head else '"[" "]"', path)
        item = self._rule(self._value(items, f"{path}/items", depth + 1), path)
        if head:
            further = _repeated(
                f"({comma} {item})", max(0, low - len(head)), None if high is None else high - len(head)
            )
            return self._rule(_sequence('"["', f" {comma} ".join(head), further, '"]"'), path)
        further = _repeated(f"({comma} {item})", max(0, low - 1), None if high is None else high - 1)
        inner = _sequence(item, further)
        return self._rule(f'"[" {inner} "]"' if low else f'"[" ({inner})? "]"', path)

    def _string(self, schema: dict[str, Any], path: str) -> str:
        if "format" in schema:
            known = _FORMATS.get(schema["format"]) if isinstance(schema["format"], str) else None
            if known is None:
                raise SchemaError(f"{path}/format", f"must be one of {', '.join(_FORMATS)}.")
            if schema.keys() & {"minLength", "maxLength"}:
                raise SchemaError(f"{path}/format", "goes without `minLength` and `maxLength`.")
            return self._rule(rf'"\"" {known} "\""', path)
        low, high = self._bounds(schema, path, "minLength", "maxLength")
        if not low and high is None:
            return self._common("string")
        return self._rule(_sequence(r'"\""', _repeated(self._common("char"), low, high), r'"\""'), path)

    def _bounds(self, schema: dict[str, Any], path: str, least: str, most: str) -> tuple[int, int | None]:
        for name in (least, most):
            value = schema.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SchemaError(f"{path}/{name}", "must be a whole number from 0 on.")
        low, high = schema.get(least, 0), schema.get(most)
        if high is not None and high < low:
            raise SchemaError(f"{path}/{most}", f"must not be below `{least}`.")
        self._lengths.add((low, high))
        total = sum(low if high is None else high for low, high in self._lengths)
        if total > _MAX_LENGTHS:
            raise SchemaError(
                f"{path}/{most if high is not None else least}",
                f"brings the sum of the different lengths in the schema to {total}; the limit is {_MAX_LENGTHS}. Leave "
                "it out, or use one length several times.",
            )
        return low, high

    def _integer(self, schema: dict[str, Any], path: str) -> str:
        ends: dict[str, int] = {}
        for name in sorted(schema.keys() & _KEYWORDS["integer"]):
            value = schema[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
                raise SchemaError(f"{path}/{name}", "must be a whole number.")
            if abs(value) >= 10**_MAX_DIGITS:
                raise SchemaError(f"{path}/{name}", f"must have at most {_MAX_DIGITS} digits.")
            ends[name] = int(value)
        if not ends:
            return self._common("integer")
        lows = [ends[n] + (n != "minimum") for n in ("minimum", "exclusiveMinimum") if n in ends]
        highs = [ends[n] - (n != "maximum") for n in ("maximum", "exclusiveMaximum") if n in ends]
        low = max(lows, default=-(10**_MAX_DIGITS) + 1)
        high = min(highs, default=10**_MAX_DIGITS - 1)
        if low > high:
            raise SchemaError(path, "no whole number is within its bounds.")
        return self._rule(_between(low, high), path)


def _sequence(*parts: str) -> str:
    """One after the other. XGrammar ends the process at an empty text within a sequence."""
    return " ".join(part for part in parts if part != _NOTHING) or _NOTHING


def _either(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"({' | '.join(options)})"


def _repeated(item: str, low: int, high: int | None) -> str:
    if high == 0:
        return _NOTHING
    return f"{item}{{{low},{'' if high is None else high}}}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _escaped(name: str) -> str:
    """A step of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _quoted(text: str) -> str:
    """A literal of the grammar."""
    safe = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in safe) + '"'


def _between(low: int, high: int) -> str:
    """An expression for the whole numbers from `low` to `high`.

    At each digit one alternative at most fits: XGrammar (in OpenVINO GenAI 2026.4) takes longer numbers than it should
    where several alternatives begin alike.
    """
    options = []
    if low < 0:
        options.append(_sequence('"-"', f"({_digits(_ranges(max(1, -high), -low))})"))
    if high >= 0:
        options.append(_digits(_ranges(max(0, low), high)))
    return " | ".join(options)


def _ranges(low: int, high: int) -> frozenset[tuple[str, str]]:
    """The numbers as ranges between two of one length each."""
    found = []
    while low <= high:
        end = min(high, 10 ** len(str(low)) - 1)
        found.append((str(low), str(end)))
        low = end + 1
    return frozenset(found)


def _digits(ranges: frozenset[tuple[str, str]]) -> str:
    """Alternatives by the first digit."""
    if all(set(low) == {"0"} and set(high) == {"9"} for low, high in ranges):
        lengths = sorted(len(low) for low, _ in ranges)
        if lengths == list(range(lengths[0], lengths[-1] + 1)):
            return f"[0-9]{{{lengths[0]},{lengths[-1]}}}"
    rests: dict[frozenset[tuple[str, str]], list[str]] = {}
    for digit in "0123456789":
        rest = frozenset(
            (low[1:] if digit == low[0] else "0" * len(low[1:]), high[1:] if digit == high[0] else "9" * len(high[1:]))
            for low, high in ranges
            if low[0] <= digit <= high[0]
        )
        if rest:
            rests.setdefault(rest, []).append(digit)
    options = []
    for rest, digits in rests.items():
        further = rest - {("", "")}
        after = _NOTHING if not further else f"({_digits(further)})" + ("?" if len(further) < len(rest) else "")
        options.append(_sequence(f"[{''.join(digits)}]", after))
    return " | ".join(options)
