"""The units for systemd: it understands them, and they say what the programs are made for."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import pytest
from deployment import DEPLOY, VARIABLES

from sandd._core.controller_options import parse_controller_options
from sandd._core.daemon_options import parse_daemon_options
from sandd._core.daemon_program import DRAIN_SECONDS
from sandd._core.service_manager import LOOK_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

UNITS: Final = sorted((DEPLOY / "systemd").glob("*.service"))


def read(path: Path) -> configparser.SectionProxy:
    """What a unit says of its service."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=["="])
    parser.optionxform = str  # type: ignore[assignment, method-assign] # its documented use
    parser.read(path)
    return parser["Service"]


def test_there_is_one_for_each_program() -> None:
    """The tests below would pass if there were none."""
    assert [path.name for path in UNITS] == ["sandd-controller.service", "sandd-daemon.service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_understands_them(unit: Path, tmp_path: Path) -> None:
    """Every line of them; but for the programs, which are not installed here."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = unit.read_text("utf-8")
    for path in ("/usr/local/bin/sandd", "/usr/bin/python3"):
        text = text.replace(f"ExecStart={path} ", f"ExecStart={program} ")
    assert str(program) in text
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    # It complains of other units of the machine, too.
    assert [line for line in done.stderr.splitlines() if unit.stem in line] == []
    assert done.returncode == 0 or unit.stem not in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_they_say_what_the_programs_do(unit: Path) -> None:
    """They tell when they are ready, ping, and have time for their end; a bad option isn't tried again."""
    service = read(unit)
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert float(service["WatchdogSec"]) >= 3 * LOOK_SECONDS
    assert float(service["TimeoutStopSec"]) > 2 * DRAIN_SECONDS
    assert service["RestartPreventExitStatus"] == "2"
    assert service["User"] not in ("", "root")
    (name,) = (part.partition("=")[0] for part in service["Environment"].split())
    assert name in VARIABLES


def test_their_options_are_ones(tmp_path: Path) -> None:
    """As written there, with a file that says the least."""
    controller, daemon = (read(unit)["ExecStart"].split() for unit in UNITS)
    assert controller[1] == "controller"
    assert daemon[1] == "-I"
    file = tmp_path / "options.toml"
    file.write_text('host = "127.0.0.1"\n')
    assert controller[2:] == ["--config", "%E/sandd/controller.toml"]
    parse_controller_options(["--config", str(file)], {}, prog="x", version="0")
    file.write_text('server_url = "ws://127.0.0.1/ws"\n')
    assert daemon[3:] == ["--config", "%E/sandd/daemon.toml"]
    parse_daemon_options(["--config", str(file)], {}, prog="x", version="0")


def test_the_daemons_commands_are_not_in_its_way() -> None:
    """It ends them itself, divides its control groups, and outlives one that is killed for its memory."""
    service = read(DEPLOY / "systemd" / "sandd-daemon.service")
    assert service["KillMode"] == "mixed"
    assert service["Delegate"] == "yes"
    assert service["OOMPolicy"] == "continue"
    left_out = ("RestrictNamespaces", "ProtectControlGroups", "SystemCallFilter", "ProtectClock")
    for breaks_them in left_out:
        assert breaks_them not in service
    users = (DEPLOY / "systemd" / "sandd.sysusers").read_text()
    assert {line.split()[1] for line in users.splitlines() if line.startswith("u ")} == {
        read(unit)["User"] for unit in UNITS
    }
