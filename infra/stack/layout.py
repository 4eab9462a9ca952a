"""Locations of files: the home shared by all meshes of a user, and the state folder of one mesh."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import infra
from infra.stack.errors import StackError
from services.kit.source_roots import FILE_NAME

KAFKA_VERSION = "4.3.1"
ELASTICSEARCH_VERSION = "8.17.0"


@dataclass(frozen=True, slots=True)
class Home:
    """Downloads and prepared parts (TIDEMILL_HOME); safe to share, safe to delete."""

    root: Path

    @property
    def downloads(self) -> Path:
        """Files extracted from packages."""
        return self.root / "downloads"

    @property
    def kafka_libs(self) -> Path:
        """Kafka's jars."""
        return self.root / "kafka" / KAFKA_VERSION / "libs"

    @property
    def elasticsearch(self) -> Path:
        """Elasticsearch's program folder, read only at run time."""
        return self.root / "elasticsearch" / ELASTICSEARCH_VERSION

    def require(self, part: Path) -> Path:
        """Returns a prepared part's folder.

        Raises:
            StackError: it is not there.
        """
        if not part.is_dir():
            raise StackError(f"{part} is missing: `tidemill up` fetches it, as does infra.stack.assets.prepare().")
        return part

    def own(self, uid: int | None = None) -> Path:
        """Where a mesh writes: a folder for each user that root starts meshes as, else this folder itself.

        Args:
            uid: the user; the one of this process when None.
        """
        user = os.geteuid() if uid is None else uid
        shared = user != 0 and self.root.exists() and self.root.stat().st_uid == 0
        return self.root / f"user-{user}" if shared else self.root

    def written(self, uid: int | None = None) -> list[Path]:
        """Folders that a mesh writes to; only downloads write to the others."""
        return [self.own(uid) / name for name in ("triton", "models", "bytecode")]

    @property
    def triton(self) -> Path:
        """Triton's backends, one folder per Python version."""
        return self.own() / "triton"

    @property
    def models(self) -> Path:
        """Base models that the training service converted."""
        return self.own() / "models"

    @property
    def bytecode(self) -> Path:
        """Python's byte code, for a mesh that cannot write next to the modules."""
        return self.own() / "bytecode"

    @property
    def data(self) -> Path:
        """Raw example data."""
        return self.root / "data"


@dataclass(frozen=True, slots=True)
class State:
    """One mesh's state (TIDEMILL_STATE)."""

    root: Path

    @property
    def file(self) -> Path:
        """What runs, and on which ports."""
        return self.root / "stack.json"

    @property
    def lock(self) -> Path:
        """Locked by the supervisor while it runs."""
        return self.root / "stack.lock"

    @property
    def source_roots(self) -> Path:
        """Folders that imports may read, as `tidemill run` allowed them."""
        return self.root / FILE_NAME

    @property
    def logs(self) -> Path:
        """One file per child."""
        return self.root / "logs"

    @property
    def kafka(self) -> Path:
        """Kafka's configuration and log folder."""
        return self.root / "kafka"

    @property
    def elasticsearch(self) -> Path:
        """Elasticsearch's configuration, data and temporary files."""
        return self.root / "elasticsearch"

    @property
    def elasticsearch_password(self) -> Path:
        """The password of Elasticsearch's guard; outside the node's folder, which another user may own."""
        return self.root / "elasticsearch.password"

    @property
    def triton_repository(self) -> Path:
        """Triton's model repository; owned by the inference service."""
        return self.root / "triton" / "models"

    @property
    def databases(self) -> Path:
        """One SQLite file per service."""
        return self.root / "db"

    @property
    def artifacts(self) -> Path:
        """Data sets, runs, builds."""
        return self.root / "artifacts"

    @property
    def model_keys(self) -> Path:
        """The key that signs builds; `trusted` holds the public keys whose builds are served."""
        return self.root / "keys" / "models"

    @property
    def peer_keys(self) -> Path:
        """The mesh's own authority and the certificates that it issued."""
        return self.root / "keys" / "peers"

    @property
    def pseudonym_key(self) -> Path:
        """The secret of the pseudonyms in masked texts."""
        return self.root / "keys" / "pseudonyms"

    @property
    def originals_key(self) -> Path:
        """The keys of encrypted originals, which cleaning makes; TIDEMILL_ORIGINALS_KEY_FILE names another file."""
        named = os.environ.get("TIDEMILL_ORIGINALS_KEY_FILE")
        return Path(named) if named else self.root / "keys" / "originals"

    @property
    def metrics_token(self) -> Path:
        """The token with which Prometheus reads the metrics of this mesh's processes."""
        return self.root / "metrics.token"

    @property
    def mlflow(self) -> Path:
        """MLflow's SQLite file."""
        return self.root / "mlflow.db"


@dataclass(frozen=True, slots=True)
class Layout:
    """Home and state of one mesh; both absolute."""

    home: Home
    state: State

    @classmethod
    def of(cls, home: Path, state: Path) -> Layout:
        """Builds the layout; nothing is created."""
        return cls(Home(home.absolute()), State(state.absolute()))


def import_roots() -> list[Path]:
    """Folders that a child Python needs on its path to import `services`, `gateway`, `infra` and `tidemill`.

    A checkout has two, an installed wheel has one.
    """
    root = Path(next(iter(infra.__path__))).resolve().parent
    return [root, *(extra for extra in (root / "protos" / "gen",) if extra.is_dir())]


def python_path() -> str:
    """The value of PYTHONPATH for a child Python."""
    return os.pathsep.join(str(path) for path in import_roots())


def service_path() -> str:
    """The value of PYTHONPATH for a service, which also imports the packages of the folder `TIDEMILL_PLUGINS`."""
    plugins = os.environ.get("TIDEMILL_PLUGINS")
    return os.pathsep.join((python_path(), plugins)) if plugins else python_path()
