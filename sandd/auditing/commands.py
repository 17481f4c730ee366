"""What ``sandd audit`` does. Nothing here needs a controller: the log is files on this machine."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from sandd._core._errors import ConfigurationError
from sandd._core.audit.chain import BadLine
from sandd._core.audit.segments import Head
from sandd._core.audit.verifying import Verdict, verify_log
from sandd._core.logs import printable
from sandd._core.own_output import write_text
from sandd.auditing.places import Place
from sandd.auditing.reading import Reader
from sandd.auditing.selecting import Selection
from sandd.auditing.showing import COLUMNS, line_for_person, row_for_table
from sandd.command_line.exit_codes import OUR_FAILURE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

CHANGED: Final = 1
"""Exit code: the log is not what was written."""


def verify(options: argparse.Namespace) -> int:
    """Say whether the log is what was written; the exit code."""
    return _told(lambda: _verify(options))


def tail(options: argparse.Namespace) -> int:
    """Show the latest records; the exit code."""
    return _told(lambda: _tail(options))


def export(options: argparse.Namespace) -> int:
    """Put records out; the exit code."""
    return _told(lambda: _export(options))


def print_key(options: argparse.Namespace) -> int:
    """Print the public key; the exit code."""
    return _told(lambda: _print_key(options))


def _told(command: Callable[[], int]) -> int:
    try:
        return command()
    except (ConfigurationError, OSError) as error:
        sys.stderr.write(f"sandd: {printable(str(error))}\n")
        return OUR_FAILURE


def _verify(options: argparse.Namespace) -> int:
    place = Place.of(options)
    head = None
    if options.head is not None:
        try:
            head = Head.parse(Path(options.head).read_bytes())
        except BadLine as error:
            raise ConfigurationError(
                f"{options.head} is no copy of a log's head: {error}"
            ) from error
    verdict = verify_log(
        place.directory,
        place.public_key(options.key),
        first_segment=options.first_segment,
        head=head,
    )
    if options.json:
        said = {"ok": verdict.fault is None, "directory": str(place.directory)}
        _put(json.dumps(said | attrs.asdict(verdict)))
    elif verdict.fault is not None:
        sys.stderr.write(
            f"sandd: {printable(f'{verdict.place}: {verdict.fault}')}\n"
            f"sandd: the {verdict.lines} records before it are as they were written\n"
        )
    else:
        for line in _praise(verdict):
            _put(line)
    return 0 if verdict.fault is None else CHANGED


def _praise(verdict: Verdict) -> list[str]:
    lines = [
        f"all {verdict.lines} records, in {verdict.segments} files, are as they were written: "
        f"{verdict.checkpoints} signatures by {verdict.key}"
    ]
    if not verdict.key_is_given:
        lines.append(
            "the key is the log's own word: whoever could rewrite all of it could name another; see --key"
        )
    if verdict.unsigned:
        lines.append(f"the latest {verdict.unsigned} records are not signed yet")
    return lines


def _tail(options: argparse.Namespace) -> int:
    with closing(Reader(Place.of(options).directory, Selection.of(options))) as reader:
        for line, fields in reader.last(options.lines):
            _put_record(options, line, fields)
        if options.follow:
            for line, fields in reader.follow():
                _put_record(options, line, fields)
    return 0


def _put_record(options: argparse.Namespace, line: bytes, fields: dict[str, Any]) -> None:
    _put(printable(line.decode("utf-8", "replace")) if options.json else line_for_person(fields))


def _export(options: argparse.Namespace) -> int:
    with closing(Reader(Place.of(options).directory, Selection.of(options))) as reader:
        table = csv.writer(_Stdout(), lineterminator="\n")
        if options.format == "csv":
            table.writerow(COLUMNS)
        for line, fields in reader.new():
            if options.format == "csv":
                table.writerow(row_for_table(fields))
            else:
                _put(printable(line.decode("utf-8", "replace")))
        if reader.skipped:
            sys.stderr.write(
                f"sandd: {reader.skipped} lines are no records; 'sandd audit verify' says more\n"
            )
            return CHANGED
    return 0


def _print_key(options: argparse.Namespace) -> int:
    key = Place.of(options).public_key(None)
    if key is None:
        raise ConfigurationError("the controller's key is not beside the log, or not yours to read")
    _put(str(key))
    return 0


def _put(line: str) -> None:
    write_text("stdout", f"{line}\n")


class _Stdout:
    """As a table is written: a row at a time."""

    def write(self, text: str) -> None:
        write_text("stdout", text)
