"""Prints the table of Kafka's jars: `python -m infra.stack.assets.lock > infra/stack/assets/kafka-jars.txt`.

For a maintainer who changes Kafka's version; a user's machine only reads the table.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from infra.stack.assets.table import KAFKA_LOGGING, KAFKA_ROOT


def kafka_rows(cache: Path) -> list[str]:
    """Resolves Kafka's closure through jgo into `cache` and digests each jar."""
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=cache, timeout=60)
    inputs, transitive = context.resolver.resolve([context.create_dependency(":".join(KAFKA_ROOT))])
    closure = [each for each in (*inputs, *transitive) if each.scope in (None, "compile", "runtime")]
    # Resolved together, the two would change each other's versions; what the binding needs is in Kafka's closure.
    rows = set()
    for dependency in (*closure, context.create_dependency(":".join(KAFKA_LOGGING))):
        content = Path(dependency.artifact.resolve()).read_bytes()
        where = f"{dependency.groupId} {dependency.artifactId} {dependency.version}"
        rows.add(f"{where} {len(content)} {hashlib.sha256(content).hexdigest()}")
    return sorted(rows)


def main() -> None:
    """Writes the table to standard output."""
    with tempfile.TemporaryDirectory() as cache:
        rows = kafka_rows(Path(cache))
    sys.stdout.write("# group artifact version bytes sha256 - made by: python -m infra.stack.assets.lock\n")
    sys.stdout.writelines(row + "\n" for row in rows)


if __name__ == "__main__":
    main()
