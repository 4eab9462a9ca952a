"""Renders pages: Jinja templates in which every value is escaped."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from gateway import formats
from gateway.console import words
from gateway.figures.plot import STYLE
from gateway.http.door import CONSOLE

HERE = Path(__file__).parent
STATIC = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""Files that pages load, and their types."""


def static_files() -> dict[str, bytes]:
    """The files that pages load, by name."""
    found = {name: (HERE / "static" / name).read_bytes() for name in STATIC}
    found["console.css"] = STYLE.encode() + found["console.css"]
    return found


def digest(content: bytes) -> str:
    """A part of a file's address that changes with its content, so that browsers may cache it."""
    return hashlib.sha256(content).hexdigest()[:12]


def environment() -> Environment:
    """The templates with their filters. A template fails if it uses a name that it was not given."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "moment": moment,
        "linked": linked,
        "short": words.short,
        "last": words.last,
        "size": formats.size,
        "rate": formats.rate,
        "metric_name": formats.metric_name,
        "interval": formats.interval,
        "thousands": lambda value: f"{value:,}",
        "share": lambda value: f"{value:.1%}",
        "signed": lambda value, digits=3: f"{value:+.{digits}f}",
        "fixed": lambda value, digits=3: f"{value:.{digits}f}",
    }
    made.globals |= {
        "static": {name: digest(content) for name, content in static_files().items()},
        "words": words,
    }
    return made


def moment(stamp: Timestamp) -> Markup:
    """A `<time>` element: how long ago it was, with the time in UTC as its tooltip."""
    if not stamp.seconds:
        return Markup("")
    when = words.instant(stamp)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        f"{when:%Y-%m-%dT%H:%M:%SZ}", f"{when:%Y-%m-%d %H:%M:%S} UTC", words.ago(stamp, datetime.now(UTC))
    )


# Names of resources that have a page, as sentences of the mesh contain them.
_NAMES = re.compile(
    r"\b(?:pipelines/[a-z0-9-]+/cycles/[a-z0-9-]+|(?:models|datasets)/[a-z0-9-]+/versions/[0-9]+|(?:rollouts|runs)/[a-z0-9-]+)"
)


def linked(text: str) -> Markup:
    """A sentence, escaped, in which the names of resources lead to their pages."""
    parts, at = [], 0
    for found in _NAMES.finditer(text):
        parts += [
            escape(text[at : found.start()]),
            Markup('<a href="{}/{}">{}</a>').format(CONSOLE, found[0], found[0]),
        ]
        at = found.end()
    return Markup("").join([*parts, escape(text[at:])])


def render(templates: Environment, template: str, /, **values: Any) -> str:
    """One page."""
    return templates.get_template(template).render(**values)
