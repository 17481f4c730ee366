"""Tokens and daemons on the disk: one join per use, one holder per id, one living key per daemon."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from sandd import ConfigurationError
from sandd._core.identity import database as database_module
from sandd._core.identity.database import (
    DATABASE_FILE,
    FORGOTTEN_SECONDS,
    KEY_FILE,
    IdentityDatabase,
    NameTaken,
    NotAllowed,
    Stale,
    Unrecorded,
    open_database,
)
from sandd._core.identity.records import (
    EnrolledDaemon,
    EnrolmentState,
    new_join_token,
    new_operator_token,
)
from sandd._core.identity.rights import Role, Verb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = 1_000_000.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[IdentityDatabase]:
    """An empty one."""
    with contextlib.closing(open_database(tmp_path)) as opened:
        yield opened


def add_token(database: IdentityDatabase, *, uses: int = 1, tenant: str = "default") -> str:
    """A join token for ids that begin with "w"; its key id."""
    _, info = new_join_token(NOW, uses=uses, tenant=tenant, daemons="w*", labels={"a": "b"})
    database.add_token(info)
    return info.id


def join(
    database: IdentityDatabase, token: str, daemon_id: str = "w", instance: str = "i"
) -> EnrolledDaemon:
    """A daemon that has joined."""
    joined = database.join(token, daemon_id, instance, NOW)
    assert isinstance(joined, EnrolledDaemon)
    return joined


def log_in(database: IdentityDatabase, uid: str, generation: int, instance: str) -> EnrolledDaemon:
    """A daemon that has come by its key, and is let in."""
    daemon = database.login(uid, generation, instance, NOW)
    assert isinstance(daemon, EnrolledDaemon)
    return daemon


@contextlib.contextmanager
def full_disk(database: IdentityDatabase) -> Iterator[None]:
    """While it lasts, nothing more can be written."""
    connection = database._connection
    database._connection = Full(connection)  # type: ignore[assignment]
    try:
        yield
    finally:
        database._connection = connection


class Full:
    """Stands in for a connection whose disk is full: what would change the file is refused, and undone, by SQLite."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """As SQLite does it with SQLITE_FULL, which ends the transaction."""
        if statement.startswith(("UPDATE", "INSERT", "DELETE")):
            self._connection.execute("ROLLBACK")
            raise sqlite3.OperationalError("database or disk is full")
        return self._connection.execute(statement, *values)


# ---- the files -----------------------------------------------------------------------------------


def test_what_is_kept_is_there_again(tmp_path: Path) -> None:
    """Tokens with all that they say, daemons, the master key and the controller's name."""
    _, join_info = new_join_token(NOW, name="ci", tenant="acme", labels={"k": "v"}, uses=3)
    _, viewer = new_operator_token(NOW, "me", role="viewer", daemons="a*", verbs=["list"])
    _, admin = new_operator_token(NOW + 1, "root", role=Role.ADMIN, tenant="*", expires_in=9.0)
    with contextlib.closing(open_database(tmp_path)) as database:
        for info in (join_info, viewer, admin):
            database.add_token(info)
        daemon = join(database, join_info.id)
        before = (database.master_key, database.controller_id)
    with contextlib.closing(open_database(tmp_path)) as database:
        kept = {each.id: each for each in database.tokens()}
        assert kept[join_info.id] == attrs.evolve(join_info, uses_left=2)
        assert (kept[viewer.id], kept[admin.id]) == (viewer, admin)
        assert kept[viewer.id].principal.verbs == frozenset({Verb.LIST})
        assert database.daemons() == [daemon]
        assert daemon.name == "acme/w"
        assert (database.master_key, database.controller_id) == before


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX ones")
def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    """Those that SQLite makes beside it, too."""
    directory = tmp_path / "state"
    with contextlib.closing(open_database(directory)) as database:
        add_token(database)
        files = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert {DATABASE_FILE, KEY_FILE, f"{DATABASE_FILE}-wal"} <= files.keys()
    assert set(files.values()) == {0o600}
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_lost_key_is_told(tmp_path: Path) -> None:
    """A new one in its place would lock all daemons out, without a word."""
    open_database(tmp_path).close()
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(ConfigurationError, match=r"is missing.*put it back"):
        open_database(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="is damaged"):
        open_database(tmp_path)


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    """In one line, and it is left as it is."""
    (tmp_path / DATABASE_FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigurationError, match="can't use"):
        open_database(tmp_path)
    assert (tmp_path / DATABASE_FILE).read_bytes().startswith(b"no database")


def test_another_releases_tables_are_told(tmp_path: Path) -> None:
    """Rather than misread."""
    open_database(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(ConfigurationError, match="another release"):
        open_database(tmp_path)


def test_two_programs_make_it_at_once(tmp_path: Path) -> None:
    """And have one key."""
    made: list[tuple[bytes, str]] = []
    barrier = threading.Barrier(4)

    def make() -> None:
        barrier.wait()
        with contextlib.closing(open_database(tmp_path)) as database:
            made.append((database.master_key, database.controller_id))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1


def test_who_comes_while_another_makes_it_waits(tmp_path: Path) -> None:
    """SQLite itself doesn't, where the file's way to be written is still to be settled: that tells at once."""
    other = sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    end = threading.Timer(0.2, other.execute, ["COMMIT"])
    end.start()
    with contextlib.closing(open_database(tmp_path)) as database:
        assert database.controller_id
    end.join()
    other.close()


def test_who_holds_it_for_ever_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said what can't be used, and why."""
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.1)
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigurationError, match="locked"):
            open_database(tmp_path)


def test_another_programs_changes_are_noticed(database: IdentityDatabase, tmp_path: Path) -> None:
    """And our own are none."""
    version = database.version()
    token = add_token(database)
    assert database.version() == version
    with contextlib.closing(open_database(tmp_path)) as other:
        other.revoke(token, NOW)
    assert database.version() != version


# ---- joining -------------------------------------------------------------------------------------


def test_a_token_is_used_up(database: IdentityDatabase) -> None:
    """After as many daemons as it is for."""
    token = add_token(database, uses=2)
    joined = [join(database, token, f"w{number}") for number in range(2)]
    assert len({each.uid for each in joined}) == 2
    assert joined[0].labels == {"a": "b"}
    assert database.join(token, "w2", "i", NOW) is None
    assert [each.state(NOW) for each in database.tokens()] == ["used up"]


def test_two_at_once_have_one_use(tmp_path: Path) -> None:
    """One wins, whatever programs they come to."""
    with contextlib.closing(open_database(tmp_path)) as database:
        token = add_token(database)
    barrier, results = threading.Barrier(8), []

    def come(number: int) -> None:
        with contextlib.closing(open_database(tmp_path)) as database:
            barrier.wait()
            results.append(database.join(token, f"w{number}", "i", NOW))

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert sum(result is not None for result in results) == 1


def test_who_has_not_heard_that_it_joined_joins_again(database: IdentityDatabase) -> None:
    """As the same daemon, and for nothing; another start, or who has used its key, doesn't."""
    token = add_token(database)
    first = join(database, token)
    assert join(database, token) == first
    assert isinstance(database.join(token, "w", "another", NOW), NameTaken)
    log_in(database, first.uid, 1, "i")
    assert isinstance(database.join(token, "w", "i", NOW), NameTaken)


def test_an_id_is_one_daemons_in_its_tenant(database: IdentityDatabase) -> None:
    """Whoever else comes with a token leaves it and the token as they are."""
    token, other = add_token(database, uses=2), add_token(database, tenant="acme")
    first = join(database, token)
    assert isinstance(database.join(token, "w", "rival", NOW), NameTaken)
    assert database.daemon(first.uid) == first
    assert [each.uses_left for each in database.tokens() if each.id == token] == [1]
    assert join(database, other).uid != first.uid


def test_a_token_is_for_some_ids(database: IdentityDatabase) -> None:
    """For others nothing is used up."""
    token = add_token(database)
    assert database.join(token, "x", "i", NOW) == NotAllowed("w*")
    join(database, token)


def test_a_token_that_is_over_joins_nobody(database: IdentityDatabase) -> None:
    """Revoked, expired, an operator's, or none."""
    _, operator = new_operator_token(NOW, "me")
    database.add_token(operator)
    revoked, expired = add_token(database), add_token(database)
    assert database.revoke(revoked, NOW)
    assert not database.revoke("nobody's", NOW)
    assert database.join(revoked, "w", "i", NOW) is None
    assert database.join(expired, "w", "i", NOW + 900.0) is None
    assert database.join(operator.id, "w", "i", NOW) is None
    assert database.join("nobody's", "w", "i", NOW) is None
    assert database.daemons() == []


# ---- coming again --------------------------------------------------------------------------------


def test_each_start_is_given_the_next_key(database: IdentityDatabase) -> None:
    """And the same one again until it has used it: a Welcome may be lost."""
    uid = join(database, add_token(database), instance="one").uid
    assert log_in(database, uid, 1, "one").offered == 1
    assert log_in(database, uid, 1, "two").offered == 2
    assert log_in(database, uid, 1, "two").offered == 2
    daemon = log_in(database, uid, 2, "two")
    assert (daemon.generation, daemon.offered) == (2, 2)


def test_a_key_is_good_until_a_later_one_was_used(database: IdentityDatabase) -> None:
    """However many of its Welcomes were lost."""
    uid = join(database, add_token(database), instance="0").uid
    offered = [log_in(database, uid, 1, str(start)).offered for start in range(1, 5)]
    assert offered == [2, 3, 4, 5]
    log_in(database, uid, 5, "4")
    assert isinstance(database.login(uid, 4, "3", NOW), Stale)


def test_a_full_disk_keeps_nobody_out_who_changes_nothing(database: IdentityDatabase) -> None:
    """A restarted daemon comes by the key that it has, and gets no other; nothing is forgotten by that."""
    uid = join(database, add_token(database), instance="one").uid
    log_in(database, uid, 1, "one")
    with full_disk(database):
        assert log_in(database, uid, 1, "one").offered == 1  # nothing is to be written
        unrecorded = database.login(uid, 1, "two", NOW)
        assert isinstance(unrecorded, Unrecorded)
        assert "full" in unrecorded.reason
        assert unrecorded.daemon.offered == 1
        with pytest.raises(sqlite3.OperationalError, match="full"):
            database.login(uid, 2, "one", NOW)  # that it came by a later one has to be on record
    assert log_in(database, uid, 1, "two").offered == 2
    with full_disk(database), pytest.raises(sqlite3.OperationalError, match="full"):
        database.lock(uid)
    database.lock(uid)
    with full_disk(database):
        assert log_in(database, uid, 1, "three").state is EnrolmentState.LOCKED


def test_what_commands_change_is_told_or_not_done(database: IdentityDatabase) -> None:
    """One transaction does both; what was heard is dropped, and of what nobody hears the oldest."""
    token = add_token(database)
    with database.journaled({"type": "token", "n": 1}, NOW):
        database.revoke(token, NOW)
    with pytest.raises(ZeroDivisionError), database.journaled({"n": 2}, NOW):  # noqa: PT012 - both matter
        database.revoke(add_token(database), NOW)
        raise ZeroDivisionError
    (told,) = database.changes(0)
    assert (json.loads(told.said), told.at) == ({"type": "token", "n": 1}, NOW)
    assert [each.revoked_at for each in database.tokens()] == [NOW]
    database.drop_changes(told.seq)
    assert database.changes(0) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sandd._core.identity.database.MAX_CHANGES", 3)
        for number in range(10):
            with database.journaled({"n": number}, NOW):
                pass
    assert [json.loads(each.said)["n"] for each in database.changes(0)] == [7, 8, 9]


def test_records_of_an_earlier_release_get_a_place_for_what_commands_tell(tmp_path: Path) -> None:
    """Those were made without one."""
    with contextlib.closing(open_database(tmp_path)) as database:
        database._connection.execute("DROP TABLE changes")
    with contextlib.closing(open_database(tmp_path)) as database:
        assert database.changes(0) == []


def test_of_two_with_one_key_one_is_found_out(database: IdentityDatabase) -> None:
    """As soon as either has used its next, whichever it is."""
    uid = join(database, add_token(database), instance="original").uid
    assert log_in(database, uid, 1, "copy").offered == 2
    assert log_in(database, uid, 1, "original, restarted").offered == 3
    log_in(database, uid, 2, "copy")
    assert isinstance(database.login(uid, 1, "original, restarted", NOW), Stale)
    log_in(database, uid, 3, "original, restarted")
    stale = database.login(uid, 2, "copy", NOW)
    assert isinstance(stale, Stale)
    assert stale.daemon.uid == uid


def test_a_locked_daemon_is_unlocked_for_whoever_comes_first(database: IdentityDatabase) -> None:
    """Then, again, who comes with an earlier key than has been used is a copy."""
    uid = join(database, add_token(database), instance="one").uid
    log_in(database, uid, 1, "two")
    log_in(database, uid, 2, "two")
    database.lock(uid)
    assert log_in(database, uid, 2, "two").state is EnrolmentState.LOCKED
    assert database.invalid(NOW) == (set(), {uid})
    database.unlock(uid)
    assert database.invalid(NOW) == (set(), set())
    after = log_in(database, uid, 1, "one")
    assert (after.state, after.generation, after.offered) == (EnrolmentState.ACTIVE, 1, 3)
    log_in(database, uid, 2, "two")
    assert isinstance(database.login(uid, 1, "one", NOW), Stale)


def test_a_forgotten_daemon_is_nobody(database: IdentityDatabase) -> None:
    """Its keys are of no use, and its id is another's, with a uid of its own."""
    token = add_token(database, uses=2)
    first = join(database, token)
    database.forget(first.uid)
    assert database.login(first.uid, 1, "i", NOW) is None
    assert database.daemons() == []
    second = join(database, token)
    assert second.uid != first.uid
    database.unlock(first.uid)  # it stays what it is
    assert database.login(first.uid, 1, "i", NOW) is None


def test_a_store_that_was_put_back_knows_later_keys(database: IdentityDatabase) -> None:
    """A key can be proven only if the controller gave it out: nobody is locked out by an old backup."""
    uid = join(database, add_token(database), instance="one").uid
    assert log_in(database, uid, 7, "one").generation == 7
    assert log_in(database, uid, 7, "two").offered == 8


def test_what_is_over_for_long_is_dropped(database: IdentityDatabase) -> None:
    """And what is in force never is."""
    token, kept = add_token(database), add_token(database, uses=2)
    database.revoke(token, NOW)
    first, second = join(database, kept, "w1"), join(database, kept, "w2")
    database.forget(first.uid)
    _, operator = new_operator_token(NOW, "me")
    database.add_token(operator)
    database.tidy(NOW + FORGOTTEN_SECONDS - 1)
    assert database.daemon(first.uid) is not None
    database.tidy(NOW + FORGOTTEN_SECONDS + 901)
    assert database.daemon(first.uid) is None
    assert database.daemons() == [second]
    assert [each.id for each in database.tokens()] == [operator.id]


def test_a_login_is_quick_among_many(database: IdentityDatabase) -> None:
    """With 10,000 daemons and as many tokens one takes less than a millisecond of processor time."""
    count = 10_000
    with database._changing(durably=False):
        for number in range(count):
            _, info = new_join_token(NOW, uses=2)
            database._insert("tokens", info)
            daemon = EnrolledDaemon(f"{number:032x}", f"w{number}", token_id=info.id)
            database._insert("daemons", daemon)
    before = time.process_time()
    for number in range(0, count, 50):
        log_in(database, f"{number:032x}", 1, "anew")
    each = (time.process_time() - before) / (count / 50)
    assert each < 0.005, f"{each * 1000:.2f} ms each"


def test_a_daemon_that_was_unlocked_is_joined_by_nobody(database: IdentityDatabase) -> None:
    """It is known by no instance then, and to name none is to name another's."""
    token = add_token(database, uses=2)
    uid = join(database, token).uid
    log_in(database, uid, 1, "i")
    database.lock(uid)
    database.unlock(uid)
    claims: list[tuple[str, tuple[str, ...]]] = [("", ()), ("j", ("",)), ("j", ("i",))]
    for instance, ancestors in claims:
        answer = database.join(token, "w", instance, NOW, ancestors=ancestors)
        assert isinstance(answer, NameTaken)
