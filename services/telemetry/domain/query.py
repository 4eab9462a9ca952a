"""Field names in queries of Lucene's syntax.

Elasticsearch knows the short names (`service`) as aliases. Other attributes of senders (`http.route`) are stored in one
container field. So that callers need not know it, field names that are not ours get the container as their prefix.
"""

from __future__ import annotations

from collections.abc import Set

# Characters that end a word in Lucene's grammar, besides white space; `-` and `+` neither end nor start one.
_SPECIAL = frozenset('!():^[]"{}~*?\\/')
_SIGNS = frozenset("+-")


def qualify_fields(query: str, known: Set[str], container: str) -> str:
    """Puts `container.` before each field name that is not known.

    Quoted phrases, regular expressions, ranges and escaped characters are not changed. An invalid query stays invalid
    in the same way, and Elasticsearch reports the error.

    Args:
        query: the caller's query.
        known: field names that need no prefix.
        container: name of the container field.
    """
    parts: list[str] = []
    at = 0
    while at < len(query):
        character = query[at]
        if character in '"/':
            end = _closing(query, at, character)
        elif character in "[{":
            end = _range_end(query, at)
        elif character.isspace() or character in _SIGNS or (character in _SPECIAL and character != "\\"):
            end = at + 1
        else:
            end = _word_end(query, at)
            word = query[at:end]
            if query[end : end + 1] == ":" and word not in known and not word.startswith(f"{container}."):
                parts.append(f"{container}.")
        parts.append(query[at:end])
        at = end
    return "".join(parts)


def _closing(query: str, start: int, mark: str) -> int:
    at = start + 1
    while at < len(query):
        if query[at] == "\\":
            at += 2
        elif query[at] == mark:
            return at + 1
        else:
            at += 1
    return len(query)


def _range_end(query: str, start: int) -> int:
    at = start + 1
    while at < len(query):
        if query[at] == '"':
            at = _closing(query, at, '"')
        elif query[at] in "]}":
            return at + 1
        else:
            at += 1
    return len(query)


def _word_end(query: str, start: int) -> int:
    at = start
    while at < len(query):
        if query[at] == "\\":
            at += 2
        elif query[at].isspace() or query[at] in _SPECIAL:
            break
        else:
            at += 1
    return min(at, len(query))
