"""What ``sandd token`` and ``sandd daemons`` do to a controller's state directory."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sandd._core._errors import ConfigurationError, SanddError, TokenNotFound
from sandd._core.audit.changes import daemon_changed, token_changed
from sandd._core.controller_state import default_state_dir
from sandd._core.identity.administration import named
from sandd._core.identity.database import DATABASE_FILE, open_database
from sandd._core.identity.records import new_join_token, new_operator_token
from sandd._core.identity.tokens import KEY_ID_LENGTH, key_id_in
from sandd._core.own_output import CantWrite, write_text
from sandd._core.state_directory import write_new
from sandd.command_line.exit_codes import OUR_FAILURE
from sandd.command_line.journaling import journaled
from sandd.command_line.stopping import fail
from sandd.controller import DEFAULT_PORT
from sandd.enrolling import tables
from sandd.fleet.tables import Layout

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from sandd._core.identity.database import IdentityDatabase
    from sandd._core.identity.records import EnrolledDaemon, TokenInfo
    from sandd._core.identity.tokens import Token

STATE_DIR_VARIABLE = "SANDD_CONTROLLER_STATE_DIR"
OUTCOMES = {"lock": "locked", "unlock": "unlocked", "forget": "forgotten"}
"""What the audit log calls what was done to a daemon."""
MOST_SHOWN = KEY_ID_LENGTH
"""Characters of what was taken for a token, in a message: behind them its secret would begin."""


def run_create_join(options: argparse.Namespace) -> int:
    """Make a join token; returns the exit code."""

    def create(database: IdentityDatabase) -> int:
        token, info = new_join_token(
            time.time(),
            name=options.name or "",
            tenant=options.tenant,
            daemons=options.daemons,
            labels=dict(options.labels),
            uses=options.uses,
            expires_in=options.expires,
        )
        return _hand_out(database, options, token, info)

    return _with_database(options, create, makes_it=True)


def run_create_operator(options: argparse.Namespace) -> int:
    """Make an operator's token; returns the exit code."""

    def create(database: IdentityDatabase) -> int:
        token, info = new_operator_token(
            time.time(),
            options.name,
            role=options.role,
            tenant=options.tenant,
            daemons=options.daemons,
            verbs=options.verbs,
            expires_in=options.expires,
        )
        return _hand_out(database, options, token, info)

    return _with_database(options, create, makes_it=True)


def _hand_out(
    database: IdentityDatabase, options: argparse.Namespace, token: Token, info: TokenInfo
) -> int:
    """Tell the token to whoever asked, once it is good."""
    if options.out is not None:
        # Before it is good for anything: what is in the way is found out in time.
        try:
            write_new(Path(options.out), token.text + "\n")
        except OSError as error:
            raise ConfigurationError(f"can't write {options.out}: {error.strerror}") from error
    made = token_changed("created", info.id, info.kind.name.lower(), info.tenant, name=info.name)
    try:
        with journaled(database, made):
            database.add_token(info)
    except BaseException:
        if options.out is not None:
            Path(options.out).unlink(missing_ok=True)
        raise
    try:
        if options.json:
            shown = {} if options.out is not None else {"token": token.text}
            _print(json.dumps(tables.token_object(info, time.time()) | shown))
        elif options.out is None:
            _print(token.text)
    except CantWrite:
        if options.out is None:  # nobody has it, or ever will
            _revoke(database, info.id)
        raise
    if options.out is None and not options.json and sys.stderr.isatty():
        sys.stderr.write("sandd: it is shown this once; keep it in a file that others can't read\n")
    return 0


def run_list_tokens(options: argparse.Namespace) -> int:
    """List tokens; returns the exit code."""

    def show(database: IdentityDatabase) -> int:
        now = time.time()
        tokens = database.tokens()
        if options.json:
            for info in tokens:
                _print(json.dumps(tables.token_object(info, now)))
        else:
            rows = [tables.token_row(info, now) for info in tokens]
            _print("\n".join(Layout().lines([tables.TOKEN_HEADER, *rows])))
        return 0

    return _with_database(options, show)


def run_revoke(options: argparse.Namespace) -> int:
    """Revoke tokens; returns the exit code."""

    def revoke(database: IdentityDatabase, token_id: str) -> None:
        # Its id as it is shown in lists and logs, or all of it.
        key_id = key_id_in(token_id)
        if key_id is None:  # not to be shown whole, as it may be most of a token
            shown = token_id if len(token_id) <= MOST_SHOWN else f"{token_id[:MOST_SHOWN]}..."
            raise TokenNotFound(
                f"{shown!r} is no token's id, nor a whole token: an id has {KEY_ID_LENGTH} letters and digits, see "
                "'sandd token list'; nothing was revoked by it"
            )
        _revoke(database, key_id)

    return _for_each(options, options.tokens, revoke)


def _revoke(database: IdentityDatabase, key_id: str) -> None:
    with journaled(database, token_changed("revoked", key_id, "token", None)):
        if not database.revoke(key_id, time.time()):
            raise TokenNotFound(f"no token has the id {key_id!r}")


def run_list_daemons(options: argparse.Namespace) -> int:
    """List daemons that have joined; returns the exit code."""

    def show(database: IdentityDatabase) -> int:
        daemons = database.daemons()
        if options.json:
            for daemon in daemons:
                _print(json.dumps(tables.daemon_object(daemon)))
        else:
            rows = [tables.daemon_row(daemon) for daemon in daemons]
            _print("\n".join(Layout().lines([tables.DAEMON_HEADER, *rows])))
        return 0

    return _with_database(options, show)


def run_change_daemons(options: argparse.Namespace) -> int:
    """Lock, unlock or forget daemons; returns the exit code."""

    def change(database: IdentityDatabase, name: str) -> None:
        daemon: EnrolledDaemon = named(database, name)
        with journaled(database, daemon_changed(OUTCOMES[options.change], name, daemon.tenant)):
            match options.change:
                case "lock":
                    database.lock(daemon.uid)
                case "unlock":
                    database.unlock(daemon.uid)
                case "forget":
                    database.forget(daemon.uid)

    return _for_each(options, options.daemons, change)


# ---- what several have ----------------------------------------------------------------------------


def _for_each(
    options: argparse.Namespace, names: list[str], act: Callable[[IdentityDatabase, str], None]
) -> int:
    """Do it to each, and name those that it was done to; the others delay none."""

    def act_on_all(database: IdentityDatabase) -> int:
        code = 0
        for name in dict.fromkeys(names):
            try:
                act(database, name)
            except SanddError as error:
                code = fail(str(error))
            else:
                _print(json.dumps({"name": name}) if options.json else name)
        return code

    return _with_database(options, act_on_all)


def _with_database(
    options: argparse.Namespace,
    act: Callable[[IdentityDatabase], int],
    *,
    makes_it: bool = False,
) -> int:
    try:
        with _database(options, makes_it=makes_it) as database:
            return act(database)
    except SanddError as error:
        return fail(str(error), OUR_FAILURE)
    except sqlite3.Error as error:
        return fail(f"the controller's tokens and daemons: {error}", OUR_FAILURE)


@contextlib.contextmanager
def _database(options: argparse.Namespace, *, makes_it: bool) -> Iterator[IdentityDatabase]:
    """That of the state directory that is meant."""
    given = options.state_dir or os.environ.get(STATE_DIR_VARIABLE)
    try:
        directory = Path(given) if given else default_state_dir(DEFAULT_PORT)
    except OSError as error:
        raise ConfigurationError(
            f"where is the controller's state? {error}: --state-dir"
        ) from error
    if not makes_it and not (directory / DATABASE_FILE).exists():
        raise ConfigurationError(
            f"no controller keeps its state in {directory}: give the directory it does (--state-dir)"
        )
    with contextlib.closing(open_database(directory)) as database:
        yield database


def _print(line: str) -> None:
    write_text("stdout", f"{line}\n")
