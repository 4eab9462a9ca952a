"""Keeps API keys in the gateway's database; used by the gateway and, on the same machine, by `tidemill keys`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    insert,
    or_,
    select,
    update,
)

from gateway.keys.key import USUAL_ROLES, ApiKey, KeyLimits, Role, digest_key, generate_key, id_of
from services.kit.clock import Clock, SystemClock
from services.kit.errors import FailedPreconditionError, NotFoundError
from services.kit.storage.database import open_database, read_only
from services.kit.whole_files import OWNER_ONLY, replace_text

metadata = MetaData()
_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(12), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("revoke_time", DateTime(timezone=True), nullable=True),
    Column("roles", String(128), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("expire_time", DateTime(timezone=True), nullable=True),
    Column("last_use_time", DateTime(timezone=True), nullable=True),
    Column("requests_per_s", Float, nullable=True),
    Column("concurrent_requests", Integer, nullable=True),
    Column("tokens_per_day", BigInteger, nullable=True),
)

KEY_FILE = "api-key"
_MIGRATIONS = Path(__file__).parent / "migrations"


def _aware(moment: datetime | None) -> datetime | None:
    # SQLite returns times without their zone.
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


class KeyStore:
    """The table of keys."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine, self._reads = engine, read_only(engine)
        self._clock = clock or SystemClock()

    @classmethod
    def open(cls, database_url: str) -> KeyStore:
        """Opens the gateway's database and brings it to its newest schema."""
        return cls(open_database(database_url, _MIGRATIONS, schema="gateway"))

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def create(
        self,
        name: str,
        roles: Iterable[Role] = USUAL_ROLES,
        *,
        expire_time: datetime | None = None,
        tenant: str = "",
        limits: KeyLimits | None = None,
    ) -> tuple[ApiKey, str]:
        """Creates a key.

        Returns:
            The key as it is stored, and its text, which cannot be shown again.
        """
        key_id, text = generate_key()
        key = ApiKey(
            key_id,
            name,
            digest_key(text),
            self._clock.now(),
            roles=frozenset(roles),
            expire_time=expire_time,
            tenant=tenant,
            limits=limits or KeyLimits(),
        )
        with self._engine.begin() as connection:
            connection.execute(insert(_keys).values(_values(key)))
        return key, text

    def list(self) -> Sequence[ApiKey]:
        """All keys, oldest first, including revoked and expired ones."""
        with self._reads.connect() as connection:
            rows = connection.execute(select(_keys).order_by(_keys.c.create_time, _keys.c.key_id)).all()
        return [_key(row) for row in rows]

    def get(self, key_id: str) -> ApiKey:
        """One key.

        Raises:
            NotFoundError: the key does not exist.
        """
        found = next((key for key in self.list() if key.key_id == key_id), None)
        if found is None:
            raise NotFoundError(f"The API key {key_id} does not exist; `tidemill keys list` shows all.")
        return found

    def rotate(self, key_id: str, overlap: timedelta) -> tuple[ApiKey, str]:
        """Creates a key with the same name, roles, tenant, limits and lifetime; the old one expires after the overlap.

        Raises:
            NotFoundError: the key does not exist.
            FailedPreconditionError: it is revoked or expired.
        """
        now = self._clock.now()
        old = self.get(key_id)
        if old.revoke_time is not None or old.expired(now):
            raise FailedPreconditionError(
                f"The API key {key_id} is revoked or expired; create another with `tidemill keys create`.",
                reason="API_KEY_ENDED",
            )
        lifetime = old.expire_time - old.create_time if old.expire_time is not None else None
        made = self.create(
            old.name,
            old.roles,
            expire_time=now + lifetime if lifetime is not None else None,
            tenant=old.tenant,
            limits=old.limits,
        )
        end = now + overlap
        with self._engine.begin() as connection:
            connection.execute(
                update(_keys)
                .where(_keys.c.key_id == key_id, or_(_keys.c.expire_time.is_(None), _keys.c.expire_time > end))
                .values(expire_time=end)
            )
        return made

    def note_uses(self, uses: Mapping[str, datetime]) -> None:
        """Stores when keys were last used; an earlier time than the known one changes nothing."""
        with self._engine.begin() as connection:
            for key_id, moment in uses.items():
                connection.execute(
                    update(_keys)
                    .where(
                        _keys.c.key_id == key_id,
                        or_(_keys.c.last_use_time.is_(None), _keys.c.last_use_time < moment),
                    )
                    .values(last_use_time=moment)
                )

    def set_limits(self, key_id: str, limits: KeyLimits) -> ApiKey:
        """Replaces the limits of a key; the gateway applies them within seconds.

        Raises:
            NotFoundError: the key does not exist.
        """
        with self._engine.begin() as connection:
            connection.execute(update(_keys).where(_keys.c.key_id == key_id).values(_limit_values(limits)))
        return self.get(key_id)

    def revoke(self, key_id: str) -> ApiKey:
        """Revokes a key; one that was revoked before keeps its time.

        Raises:
            NotFoundError: the key does not exist.
        """
        with self._engine.begin() as connection:
            connection.execute(
                update(_keys)
                .where(_keys.c.key_id == key_id, _keys.c.revoke_time.is_(None))
                .values(revoke_time=self._clock.now())
            )
        return self.get(key_id)

    def ensure_local_key(self, state: Path) -> Path:
        """Ensures that this machine's user has a key: writes one to `<state>/api-key` (mode 0600) if needed.

        A file with a revoked key stays as it is: a revoked key must not come back.
        """
        path = state / KEY_FILE
        if path.is_file():
            known = {key.key_id for key in self.list()}
            if id_of(path.read_text(encoding="utf-8").strip()) in known:
                return path
        _, text = self.create("local", {Role.ADMIN})
        write_local_key(state, text)
        return path


def write_local_key(state: Path, text: str) -> None:
    """Writes this machine's key to `<state>/api-key`, readable by its owner only."""
    path = state / KEY_FILE
    state.mkdir(parents=True, exist_ok=True)
    replace_text(path, text + "\n", OWNER_ONLY)


def _values(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "digest": key.digest,
        "create_time": key.create_time,
        "roles": ",".join(sorted(key.roles)),
        "tenant": key.tenant,
        "expire_time": key.expire_time,
        **_limit_values(key.limits),
    }


def _limit_values(limits: KeyLimits) -> dict[str, Any]:
    return {
        "requests_per_s": limits.requests_per_s,
        "concurrent_requests": limits.concurrent,
        "tokens_per_day": limits.tokens_per_day,
    }


def _key(row: Any) -> ApiKey:
    return ApiKey(
        row.key_id,
        row.name,
        row.digest,
        _aware(row.create_time) or row.create_time,
        _aware(row.revoke_time),
        roles=frozenset(Role(role) for role in row.roles.split(",") if role),
        expire_time=_aware(row.expire_time),
        last_use_time=_aware(row.last_use_time),
        tenant=row.tenant,
        limits=KeyLimits(row.requests_per_s, row.concurrent_requests, row.tokens_per_day),
    )
