"""``sandd policy check``: the report, for people or as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sandd._core._errors import ConfigurationError
from sandd._core.logs import printable
from sandd._core.own_output import write_text
from sandd.policing.check import Asked, check

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from sandd.policing.check import Report


def run(options: argparse.Namespace) -> int:
    """Check the file; 0 if nothing is wrong, 1 if something is or the command is denied, 2 if it is no policy."""
    asked = None
    if options.remote_command is not None:
        asked = Asked(
            options.remote_command,
            cwd=options.cwd,
            user=options.user,
            env=dict(options.env),
            shell=options.shell,
            pty=options.pty,
        )
    try:
        if options.shell and (asked is None or len(asked.command) != 1):
            raise ConfigurationError("--shell takes one text behind --")
        report = check(Path(options.file), asked)
    except ConfigurationError as error:
        sys.stderr.write(f"sandd policy check: error: {printable(str(error))}\n")
        return 2
    if options.json:
        write_text("stdout", f"{json.dumps(_as_json(report))}\n")
    else:
        write_text("stdout", "".join(f"{printable(line)}\n" for line in _as_lines(report)))
    return 0 if report.is_good else 1


def _as_lines(report: Report) -> Iterator[str]:
    count = len(report.policy.rules)
    rules = "1 rule" if count == 1 else f"{count} rules"
    yield f"policy {report.policy.hash}: {rules}, exec_lock {report.policy.exec_lock.value}"
    for finding in report.findings:
        where = "" if finding.rule is None else f"rule {finding.rule!r}: "
        yield f"{finding.severity.value}: {where}{finding.text}"
    verdict = report.verdict
    if verdict is None:
        return
    if verdict.allowed:
        yield f"allowed by rule {verdict.rule!r}"
        return
    yield "denied: no rule allows it"
    for miss in verdict.misses:
        yield f"  rule {miss.rule!r}: {miss.why}"


def _as_json(report: Report) -> dict[str, object]:
    verdict = report.verdict
    return {
        "hash": report.policy.hash,
        "findings": [
            {"severity": each.severity.value, "rule": each.rule, "text": each.text}
            for each in report.findings
        ],
        "allowed": None if verdict is None else verdict.allowed,
        "rule": None if verdict is None else verdict.rule,
        "misses": []
        if verdict is None
        else [{"rule": miss.rule, "why": miss.why} for miss in verdict.misses],
    }
