"""``sandd ca show``, ``rotate`` and ``issue``. No trio: they are done with a few files, and nothing waits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandd._core._errors import ConfigurationError
from sandd._core.audit.changes import authority_rotated, certificate_issued
from sandd._core.controller_state import default_state_dir
from sandd._core.identity.database import DATABASE_FILE, open_database
from sandd._core.own_output import write_text
from sandd._core.state_directory import replace_file, write_new
from sandd._core.tls import authority
from sandd._core.tls.certificates import read_authority
from sandd._core.tls.files import DIRECTORY, AuthorityFiles
from sandd._core.tls.rotation import SETTLE_SECONDS, Phase, Rotation, TooEarly
from sandd.certificates.options import STATE_DIR_VARIABLE
from sandd.command_line.journaling import journaled
from sandd.command_line.stopping import Failure, fail
from sandd.controller import DEFAULT_PORT

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from sandd._core.audit.records import Record
    from sandd._core.tls.key_pair import KeyPair

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}")
"""What a uid or an operator's name may be: plain, as it stands in a URI."""
_STEPS: Final = {
    Phase.TRUST_BOTH: "There is a new CA. The old one still signs; peers that are connected, or connect, learn of "
    "the new one. Give those whom you set up from now on both pins, with a comma between.\n"
    "Next, in a day: sandd ca rotate, and the new one signs.",
    Phase.ISSUE_NEW: "The new CA signs. The old one is still believed: replace client certificates of it "
    "(sandd ca issue), and pins of it in whatever sets up daemons.\n"
    "Next, in a day: sandd ca rotate, and the old one is gone.",
    Phase.STEADY: "The old CA is gone; what it has signed is worth nothing. The rotation is complete.",
}


def run_show(options: argparse.Namespace) -> int:
    """Show the CAs and the server's certificate; returns the exit code."""
    return _told(lambda: _show(_files(options), as_json=options.json))


def run_rotate(options: argparse.Namespace) -> int:
    """Take the next step; returns the exit code."""
    return _told(lambda: _rotate(_files(options), patient=not options.now))


def run_issue(options: argparse.Namespace) -> int:
    """Make a certificate for a peer; returns the exit code."""
    return _told(lambda: _issue(_files(options), options))


def _show(files: AuthorityFiles, *, as_json: bool) -> None:
    rotation = _existing(files)
    shown = [_of_authority(rotation, each) for each in rotation.trusted]
    try:
        facts = authority.read_facts(files.server_file.read_text("ascii"))
        shown.append(_fields("server", facts) | {"names": sorted(facts.names)})
    except (OSError, ValueError):
        pass  # no controller has run yet, or it makes another one when it does
    for fields in shown:
        if as_json:
            _print(json.dumps(fields))
            continue
        until = datetime.fromtimestamp(float(str(fields["not_after"])), UTC)
        what = f"{fields['kind']:<12} until {until:%Y-%m-%d %H:%M} UTC  "
        names = fields.get("names")
        _print(what + (", ".join(names) if isinstance(names, list) else str(fields["pin"])))
    if rotation.phase is not Phase.STEADY and not as_json:
        since = datetime.fromtimestamp(rotation.since, UTC)
        _print(f"rotation     {rotation.phase.value}, since {since:%Y-%m-%d %H:%M} UTC")


def _of_authority(rotation: Rotation, pair: KeyPair) -> dict[str, object]:
    if rotation.phase is Phase.STEADY:
        kind = "CA"
    else:
        age = "old" if pair is rotation.old else "new"
        kind = f"{age} CA{', signs' if pair is rotation.issuer else ''}"
    return _fields(kind, authority.read_facts(pair.certificate))


def _fields(kind: str, facts: authority.CertificateFacts) -> dict[str, object]:
    return {
        "kind": kind,
        "pin": str(facts.pin),
        "subject": facts.subject,
        "serial": f"{facts.serial:x}",
        "not_before": facts.not_before,
        "not_after": facts.not_after,
    }


def _rotate(files: AuthorityFiles, *, patient: bool) -> None:
    now = time.time()
    _existing(files)
    with files.locked():
        rotation = _existing(files)
        if rotation.phase is Phase.STEADY:
            rotation = rotation.begin(authority.new_authority(now), now)
        else:
            try:
                rotation = rotation.go_on(now, patient=patient)
            except TooEarly as early:
                raise Failure(
                    f"the step before was not a day ago: {early.seconds / 3600:.1f} of {SETTLE_SECONDS / 3600:.0f} "
                    "hours are left for peers to learn of it; --now locks out those that haven't"
                ) from early
        pins = [str(authority.read_facts(each.certificate).pin) for each in rotation.trusted]
        with _told_to_controller(files, authority_rotated(rotation.phase.value, pins)):
            files.write(rotation)
    _print(f"{rotation.phase.value}: {_STEPS[rotation.phase]}")
    for each in rotation.trusted:
        fields = _of_authority(rotation, each)
        _print(f"{fields['kind']:<12} {fields['pin']}")


def _issue(files: AuthorityFiles, options: argparse.Namespace) -> None:
    name, out = options.name, Path(options.out)
    if not NAME.fullmatch(name):
        raise Failure(f"{name!r} is no uid or name: letters, digits and . _ : @ / - make one")
    rotation = _existing(files)
    uri = f"sandd:{options.kind}:{name}"
    pair = authority.issue_client(
        rotation.client_issuer, uri, time.time(), seconds=options.days * authority.DAY
    )
    facts = authority.read_facts(pair.certificate)
    issued = certificate_issued(uri, f"{facts.serial:x}", facts.not_after)
    try:
        with _told_to_controller(files, issued):
            if options.force:
                replace_file(out, pair.pem, mode=0o600)
            else:
                write_new(out, pair.pem.decode("ascii"))
    except FileExistsError as error:
        raise Failure(
            f"{out} is there already, and maybe somebody's only key: give another --out, or --force to replace it"
        ) from error
    except OSError as error:
        raise Failure(f"can't write {out}: {error.strerror}") from error
    until = datetime.fromtimestamp(facts.not_after, UTC)
    _print(f"{out}: {uri}, until {until:%Y-%m-%d %H:%M} UTC, serial {facts.serial:x}")


@contextlib.contextmanager
def _told_to_controller(files: AuthorityFiles, record: Record) -> Iterator[None]:
    """What is done in the block goes into the audit log of the controller that has these files."""
    state_dir = files.directory.parent
    if not (state_dir / DATABASE_FILE).exists():  # no controller has run with it yet
        yield
        return
    try:
        with contextlib.closing(open_database(state_dir)) as database, journaled(database, record):
            yield
    except sqlite3.Error as error:
        raise Failure(
            f"it can't be put on record: {state_dir / DATABASE_FILE}: {error}; look whether it was done"
        ) from error


def _files(options: argparse.Namespace) -> AuthorityFiles:
    given = options.state_dir or os.environ.get(STATE_DIR_VARIABLE)
    try:
        directory = Path(given) if given else default_state_dir(DEFAULT_PORT)
    except OSError as error:
        raise Failure(f"there is no place for any state: {error}; say --state-dir") from error
    return AuthorityFiles(directory / DIRECTORY)


def _existing(files: AuthorityFiles) -> Rotation:
    rotation = read_authority(files)
    if rotation is None:
        raise Failure(
            f"there is no CA in {files.directory}: a controller makes one when it is started with --tls auto; "
            f"is that its --state-dir, or ${STATE_DIR_VARIABLE}?"
        )
    return rotation


def _told(act: Callable[[], None]) -> int:
    try:
        act()
    except (ConfigurationError, Failure) as error:
        return fail(str(error))
    return 0


def _print(line: str) -> None:
    write_text("stdout", f"{line}\n")
