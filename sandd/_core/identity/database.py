"""Tokens and daemons on the disk: an SQLite file, and a master key beside it. Each call blocks.

Any number of programs may have it open: the controller, and whoever makes tokens on the command line. What has to be
decided by what is there is one transaction each, so that of two who come at once one is second.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import sys
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import evolve, frozen

from sandd._core._errors import ConfigurationError
from sandd._core.identity.records import EnrolledDaemon, EnrolmentState, TokenInfo
from sandd._core.identity.rights import Role, Verb
from sandd._core.identity.tokens import TokenKind
from sandd._core.state_directory import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

DATABASE_FILE: Final = "sandd.db"
KEY_FILE: Final = "master.key"
MASTER_KEY_BYTES: Final = 32
BUSY_SECONDS: Final = 5.0
"""How long one program waits for another's transaction; each takes milliseconds."""
BUSY_LOOK_SECONDS: Final = 0.01
"""Between two looks, where SQLite doesn't wait by itself."""
FORGOTTEN_SECONDS: Final = 30 * 86400.0
"""How long what is over stays in lists."""
MAX_DAEMONS: Final = 1_000_000
"""Records of daemons: ten times those that a controller knows at once."""
MAX_CHANGES: Final = 10_000
"""Changes kept for a controller that doesn't run, or has no audit log; then the oldest go: 5 MB."""
CHANGES_AT_ONCE: Final = 100
"""Read in one turn."""
_VERSION: Final = 1
_CHANGES: Final = """
CREATE TABLE IF NOT EXISTS changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, said TEXT NOT NULL
)
"""
_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, tenant TEXT NOT NULL,
    daemons TEXT NOT NULL, labels TEXT NOT NULL, uses INTEGER NOT NULL, uses_left INTEGER NOT NULL,
    role TEXT NOT NULL, verbs TEXT, created_at REAL NOT NULL, expires_at REAL, revoked_at REAL,
    digest BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE daemons (
    uid TEXT PRIMARY KEY, id TEXT NOT NULL, tenant TEXT NOT NULL, labels TEXT NOT NULL,
    state TEXT NOT NULL, generation INTEGER NOT NULL, highest INTEGER NOT NULL,
    offered INTEGER NOT NULL, instance TEXT NOT NULL, token_id TEXT NOT NULL,
    joined_at REAL NOT NULL, seen_at REAL NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX daemons_by_name ON daemons (tenant, id) WHERE state != 'forgotten';
CREATE INDEX daemons_by_state ON daemons (state) WHERE state != 'active';
"""


@frozen
class Change:
    """Something that a command has changed, for the controller's audit log."""

    seq: int
    at: float
    """In seconds since 1970."""
    said: str
    """Fields of a record, as JSON."""


@frozen
class NameTaken:
    """The id is another daemon's, which has joined before."""


@frozen
class NotAllowed:
    """The join token is for other ids: those that match this."""

    pattern: str


@frozen
class Stale:
    """The key is of a generation that a later one has replaced: there are two that have it."""

    daemon: EnrolledDaemon


@frozen
class Unrecorded:
    """It may come, and can't be given its next key, since that couldn't be put on record."""

    daemon: EnrolledDaemon
    reason: str


class IdentityDatabase:
    """The records in one state directory. One thread at a time may use it."""

    def __init__(self, connection: sqlite3.Connection, path: Path, master_key: bytes) -> None:
        self._connection = connection
        self.path = path
        self.master_key = master_key

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    @property
    def controller_id(self) -> str:
        """What the controller is called towards daemons, over all its starts."""
        (value,) = self._connection.execute(
            "SELECT value FROM meta WHERE name = 'controller_id'"
        ).fetchone()
        return str(value)

    def version(self) -> int:
        """Another number whenever another program has changed something."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    # -- tokens

    def add_token(self, info: TokenInfo) -> None:
        """Keep a new token."""
        with self._changing():
            self._insert("tokens", info)

    def token(self, key_id: str) -> TokenInfo | None:
        """The token of that key id."""
        rows = self._select("tokens", "id = ?", key_id)
        return _token(rows[0]) if rows else None

    def tokens(self) -> list[TokenInfo]:
        """All of them, oldest first."""
        return [_token(row) for row in self._select("tokens", "1 ORDER BY created_at, id")]

    def revoke(self, key_id: str, now: float) -> bool:
        """Nobody is let in by it any more; whether there is such a token."""
        with self._changing():
            found = self._connection.execute(
                "UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?", (now, key_id)
            )
            return found.rowcount > 0

    # -- daemons

    def join(
        self,
        key_id: str,
        daemon_id: str,
        instance: str,
        now: float,
        *,
        ancestors: Sequence[str] = (),
    ) -> EnrolledDaemon | NameTaken | NotAllowed | None:
        """A daemon, that has proven to have this token, joins by it; None: the token is not valid any more.

        The same instance that comes with the same token again hasn't heard that it was let in, and one that was
        started after it from the same state directory (so it is among its ancestors) finds no key there: it is the
        same join, until the daemon has used its key.
        """
        with self._changing():
            token = self.token(key_id)
            if token is None or token.kind is not TokenKind.JOIN or not token.is_valid(now):
                return None
            if not fnmatchcase(daemon_id, token.daemons):
                return NotAllowed(token.daemons)
            known = self.named(token.tenant, daemon_id)
            if known is not None:
                # (One that was unlocked has none: that waits for one of its keys.)
                is_same = known.token_id == key_id and known.instance in {instance, *ancestors} - {
                    ""
                }
                return known if is_same and not known.is_confirmed else NameTaken()
            (count,) = self._connection.execute("SELECT count(*) FROM daemons").fetchone()
            if token.uses_left <= 0 or count >= MAX_DAEMONS:
                return None
            self._connection.execute(
                "UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ?", (key_id,)
            )
            daemon = EnrolledDaemon(
                uid=secrets.token_hex(16),
                id=daemon_id,
                tenant=token.tenant,
                labels=token.labels,
                instance=instance,
                token_id=key_id,
                joined_at=now,
                seen_at=now,
            )
            self._insert("daemons", daemon)
            return daemon

    def login(
        self, uid: str, generation: int, instance: str, now: float
    ) -> EnrolledDaemon | Stale | Unrecorded | None:
        """A daemon, that has proven to have the key of this generation, comes; None: it is forgotten.

        A key is good until a later one was used. Each instance is given the next one: so of two that have one key
        the first to use its next makes the other's stale. While nothing can be written, who has the latest key
        that was used comes by that, and is given no other.
        """
        try:
            return self._login(uid, generation, instance, now)
        except sqlite3.OperationalError as error:  # a full disk, say; reading may go on
            daemon = self.daemon(uid)
            is_latest = daemon is not None and daemon.generation == generation
            if daemon is None or daemon.state is not EnrolmentState.ACTIVE or not is_latest:
                raise
            # To give it a key that isn't on record could give one key to two.
            return Unrecorded(evolve(daemon, offered=generation), str(error))

    def _login(
        self, uid: str, generation: int, instance: str, now: float
    ) -> EnrolledDaemon | Stale | None:
        with self._changing(durably=False):
            daemon = self.daemon(uid)
            if daemon is None or daemon.state is EnrolmentState.FORGOTTEN:
                return None
            if daemon.state is EnrolmentState.LOCKED:
                return daemon
            if generation < daemon.generation:
                return Stale(daemon)
            after = evolve(daemon, generation=generation, highest=max(daemon.highest, generation))
            if instance != daemon.instance:
                after = evolve(
                    after,
                    highest=after.highest + 1,
                    offered=after.highest + 1,
                    instance=instance,
                    seen_at=now,
                )
            if after != daemon:
                self._connection.execute(
                    "UPDATE daemons SET generation = ?, highest = ?, offered = ?, instance = ?, "
                    "seen_at = ? WHERE uid = ?",
                    (
                        *(after.generation, after.highest, after.offered, after.instance),
                        *(after.seen_at, uid),
                    ),
                )
            return after

    def daemon(self, uid: str) -> EnrolledDaemon | None:
        """The daemon of that uid, forgotten or not."""
        rows = self._select("daemons", "uid = ?", uid)
        return _daemon(rows[0]) if rows else None

    def named(self, tenant: str, daemon_id: str) -> EnrolledDaemon | None:
        """The daemon that has this id now."""
        condition = "tenant = ? AND id = ? AND state != 'forgotten'"
        rows = self._select("daemons", condition, tenant, daemon_id)
        return _daemon(rows[0]) if rows else None

    def daemons(self) -> list[EnrolledDaemon]:
        """All but those that are forgotten, by tenant and id."""
        rows = self._select("daemons", "state != 'forgotten' ORDER BY tenant, id")
        return [_daemon(row) for row in rows]

    def lock(self, uid: str) -> None:
        """Nobody is let in by its key until it is unlocked."""
        with self._changing():
            self._connection.execute(
                "UPDATE daemons SET state = 'locked' WHERE uid = ? AND state = 'active'", (uid,)
            )

    def unlock(self, uid: str) -> None:
        """Whoever comes first with one of its keys has it; then, again, an earlier one is a copy's."""
        with self._changing():
            self._connection.execute(
                "UPDATE daemons SET state = 'active', generation = 0, instance = '' "
                "WHERE uid = ? AND state = 'locked'",
                (uid,),
            )

    def forget(self, uid: str) -> None:
        """Its keys are good for nothing any more, and another daemon may have its id."""
        with self._changing():
            self._connection.execute("UPDATE daemons SET state = 'forgotten' WHERE uid = ?", (uid,))

    def invalid(self, now: float) -> tuple[set[str], set[str]]:
        """(key ids of operators' tokens, uids of daemons) by which nobody may be here."""
        tokens = self._connection.execute(
            "SELECT id FROM tokens WHERE kind = ? AND (revoked_at IS NOT NULL OR expires_at <= ?)",
            (TokenKind.OPERATOR.value, now),
        )
        daemons = self._connection.execute("SELECT uid FROM daemons WHERE state != 'active'")
        return {row[0] for row in tokens}, {row[0] for row in daemons}

    def tidy(self, now: float) -> None:
        """Drop what has been over for long."""
        with self._changing():
            before = now - FORGOTTEN_SECONDS
            self._connection.execute(
                "DELETE FROM tokens WHERE coalesce(revoked_at, expires_at) < ?", (before,)
            )
            self._connection.execute(
                "DELETE FROM daemons WHERE state = 'forgotten' AND seen_at < ?", (before,)
            )

    # -- what is told of it

    @contextlib.contextmanager
    def journaled(self, said: Mapping[str, Any], now: float) -> Iterator[None]:
        """What is changed in this block is told to the controller, or not changed: both, or neither."""
        with self._changing():
            added = self._connection.execute(
                "INSERT INTO changes (at, said) VALUES (?, ?)", (now, json.dumps(dict(said)))
            )
            assert added.lastrowid is not None
            oldest = added.lastrowid - MAX_CHANGES
            self._connection.execute("DELETE FROM changes WHERE seq <= ?", (oldest,))
            yield

    def changes(self, after: int) -> list[Change]:
        """What was told to the controller behind that number; the oldest of it, in order."""
        rows = self._connection.execute(
            "SELECT seq, at, said FROM changes WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, CHANGES_AT_ONCE),
        ).fetchall()
        return [Change(row["seq"], row["at"], row["said"]) for row in rows]

    def drop_changes(self, up_to: int) -> None:
        """Those up to that number were heard."""
        with self._changing():
            self._connection.execute("DELETE FROM changes WHERE seq <= ?", (up_to,))

    # -- inside

    @contextlib.contextmanager
    def _changing(self, *, durably: bool = True) -> Iterator[None]:
        """One transaction, whose place in the order of all is settled before anything is read.

        Not `durably`: a power cut may undo it, and nothing else. Inside of another it is a part of that.
        """
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if durably else 'NORMAL'}")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself undoes what a full disk ends
                self._connection.execute("ROLLBACK")
            raise

    def _select(self, table: str, condition: str, *values: Any) -> list[sqlite3.Row]:
        # Both are texts of this module.
        statement = f"SELECT * FROM {table} WHERE {condition}"  # noqa: S608
        return self._connection.execute(statement, values).fetchall()

    def _insert(self, table: str, record: TokenInfo | EnrolledDaemon) -> None:
        values = {each.name: getattr(record, each.name) for each in attrs.fields(type(record))}
        values["labels"] = json.dumps(dict(record.labels))
        if isinstance(record, TokenInfo) and record.verbs is not None:
            values["verbs"] = ",".join(sorted(record.verbs))
        names = ", ".join(values)
        places = ", ".join("?" for _ in values)
        # Names of fields, and nothing that anybody has said.
        statement = f"INSERT INTO {table} ({names}) VALUES ({places})"  # noqa: S608
        self._connection.execute(statement, list(map(_plain, values.values())))


def open_database(directory: Path) -> IdentityDatabase:
    """The records in a state directory, made where there are none. Close it.

    Raises:
        ConfigurationError: they can't be read, or the key to them is missing.
    """
    path = directory / DATABASE_FILE
    connection = None
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite gives what it makes beside a file the file's permissions.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if sys.platform != "win32":
            path.chmod(0o600)
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        _write_ahead(connection)
        database = IdentityDatabase(connection, path, b"")
        with database._changing():
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                _create(connection)
            elif version != _VERSION:
                raise ConfigurationError(
                    f"{path} was written by another release of sandd (version {version} of its tables); "
                    "use that, or another state directory"
                )
            connection.execute(_CHANGES)
            # In the transaction: of two programs that make the file one makes the key.
            database.master_key = _master_key(directory / KEY_FILE, is_new=version == 0)
        return database
    except (OSError, sqlite3.Error) as error:
        if connection is not None:
            connection.close()
        raise ConfigurationError(f"can't use {path}: {error}") from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Have it use a log of its changes.

    Who finds that another makes the file is told at once that it is locked, whatever time-out SQLite was given: as two
    might wait for each other.
    """
    patience = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= patience:
                raise
        time.sleep(BUSY_LOOK_SECONDS)


def _create(connection: sqlite3.Connection) -> None:
    # Not executescript(), which would end the transaction.
    for statement in filter(str.strip, _SCHEMA.split(";")):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('controller_id', ?)", (secrets.token_hex(8),))
    connection.execute(f"PRAGMA user_version = {_VERSION}")


def _master_key(path: Path, *, is_new: bool) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        key = path.read_bytes()
        if len(key) != MASTER_KEY_BYTES:
            raise ConfigurationError(f"{path} is damaged: it has {len(key)} bytes instead of 32")
        return key
    if not is_new:
        raise ConfigurationError(
            f"{path} is missing, by which daemons' keys are made: put it back from where the state directory "
            f"was backed up, or remove {DATABASE_FILE} too and let all daemons join anew"
        )
    key = secrets.token_bytes(MASTER_KEY_BYTES)
    replace_file(path, key, mode=0o600)
    return key


def _token(row: sqlite3.Row) -> TokenInfo:
    values = dict(row)
    verbs = values["verbs"]
    return TokenInfo(
        **values
        | {
            "kind": TokenKind(values["kind"]),
            "role": Role(values["role"]),
            "labels": json.loads(values["labels"]),
            "verbs": None
            if verbs is None
            else frozenset(map(Verb, filter(None, verbs.split(",")))),
        }
    )


def _daemon(row: sqlite3.Row) -> EnrolledDaemon:
    values = dict(row)
    return EnrolledDaemon(
        **values
        | {"labels": json.loads(values["labels"]), "state": EnrolmentState(values["state"])}
    )


def _plain(value: Any) -> Any:
    """An enumeration's text for itself: sqlite3 takes nothing but its own types."""
    return str(value.value) if isinstance(value, (Role, TokenKind, EnrolmentState)) else value
