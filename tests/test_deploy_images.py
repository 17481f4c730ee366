"""The images, and the example for compose: what can be told of them where nothing builds or runs one."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import pytest
from deployment import DEPLOY, PROJECT, TOP, VARIABLES, read_yaml

from sandd._core.bundle.archive import NAME
from sandd._core.controller_options import parse_controller_options
from sandd._core.daemon_options import parse_daemon_options
from sandd.cli import build_parser

if TYPE_CHECKING:
    from pathlib import Path

FILES: Final = sorted(DEPLOY.glob("Dockerfile.*"))
INSTRUCTIONS: Final = {
    *("FROM", "COPY", "RUN", "USER", "WORKDIR", "VOLUME", "EXPOSE", "ENV", "STOPSIGNAL"),
    *("HEALTHCHECK", "ENTRYPOINT"),
}


def instructions(path: Path) -> list[tuple[str, str]]:
    """What a file says, in order; lines that go on are one."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.partition(" ") for line in text.splitlines() if line]
    return [(name, rest.strip()) for name, _, rest in found]


def only(path: Path, name: str) -> str:
    """What the last stage says by this instruction."""
    (*_, last) = [rest for each, rest in instructions(path) if each == name]
    return last


def environment(path: Path) -> dict[str, str]:
    """Its variables that sandd reads."""
    pairs = (each.split("=", 1) for each in only(path, "ENV").split())
    return {name: value for name, value in pairs if name.startswith("SANDD_")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_instruction_is_one(path: Path) -> None:
    """And what they begin with is a Python that will do; nothing runs as root."""
    said = instructions(path)
    assert {name for name, _ in said} <= INSTRUCTIONS
    minimum = tuple(map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split(".")))
    for name, rest in said:
        if name == "FROM":
            found = re.fullmatch(r"python:(\d+)\.(\d+)-slim(?: AS \w+)?", rest)
            assert found, rest
            assert (int(found[1]), int(found[2])) >= minimum
    assert int(only(path, "USER")) > 1000
    assert set(environment(path)) <= VARIABLES
    assert environment(path)


def test_the_files_that_go_into_an_image_are_let_in() -> None:
    """What a wheel is built from, and nothing else: no state, no secret, no history."""
    said = (TOP / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in said if line.startswith("!")}
    assert "*" in said
    needed = {
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        *("pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]),
    }
    assert allowed == needed
    assert all((TOP / name).exists() for name in allowed)


def test_the_programs_are_where_they_are_started() -> None:
    """And what they are told to begin with they understand."""
    controller, daemon = FILES
    assert json.loads(only(controller, "ENTRYPOINT")) == ["sandd", "controller"]
    assert "sandd" in PROJECT["project"]["scripts"]
    options = parse_controller_options([], environment(controller), prog="x", version="0")
    assert (options.host, options.tls) == ("0.0.0.0", "auto")
    assert str(options.state_dir) == only(controller, "VOLUME")
    assert str(options.port) == only(controller, "EXPOSE")

    python, isolated, file = json.loads(only(daemon, "ENTRYPOINT"))
    assert (python, isolated) == ("python3", "-I")
    source, target = only(daemon, "COPY").split()[-2:]
    assert (target, PurePosixPath(file).name) == (file, NAME)
    (made,) = re.findall(
        r"&& sandd (bundle .*)", "\n".join(rest for _, rest in instructions(daemon))
    )
    assert build_parser().parse_args(made.split()).output == source
    given = environment(daemon) | {"SANDD_SERVER_URL": "wss://x/ws"}
    told = parse_daemon_options([], given, prog="x", version="0")
    assert str(told.state_dir) == only(daemon, "VOLUME")


def test_the_example_for_compose_fits_together() -> None:
    """Files, names, secrets and volumes that it names are there, and the options are ones."""
    said = read_yaml(DEPLOY / "compose.yaml")
    services = said["services"]
    assert set(services) == {"controller", "daemon"}
    for name, service in services.items():
        assert (DEPLOY / service["build"]["context"]).resolve() == TOP
        assert service["build"]["dockerfile"] == f"deploy/Dockerfile.{name}"
        assert set(service["environment"]) <= VARIABLES
        assert set(service["secrets"]) <= set(said["secrets"])
        for variable, value in service["environment"].items():
            if variable.endswith("TOKEN_FILE"):
                assert value == f"/run/secrets/{service['secrets'][0]}"
    # What it has one put beside it is a secret: neither committed nor packed.
    (secret,) = (DEPLOY / each["file"] for each in said["secrets"].values())
    assert f"/{secret.relative_to(TOP)}" in (TOP / ".gitignore").read_text().splitlines()
    controller, daemon = services["controller"], services["daemon"]
    volume, _, place = controller["volumes"][0].partition(":")
    assert volume in said["volumes"]
    assert place == only(DEPLOY / "Dockerfile.controller", "VOLUME")
    # Daemons dial it by its name, which its certificate has.
    assert controller["command"] == ["--tls-name", "controller"]
    assert daemon["environment"]["SANDD_SERVER_URL"] == "wss://controller:8765/ws"
    assert daemon["init"] is True
