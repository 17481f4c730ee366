"""The workflows of continuous integration: they call what there is, with no more rights than they need."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from deployment import PROJECT, TOP, read_yaml

from sandd.cli import build_parser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES: Final = sorted((TOP / ".github" / "workflows").glob("*.yml"))


def sessions() -> set[str]:
    """Those that nox knows, by their names there."""
    found = set()
    for node in ast.parse((TOP / "noxfile.py").read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                shown = ast.unparse(decorator)
                if shown.startswith("nox.session"):
                    given = re.search(r"name='(\w+)'", shown)
                    found.add(given[1] if given else node.name)
    return found


def jobs(path: Path) -> Iterator[dict[str, Any]]:
    """The jobs of a workflow."""
    yield from read_yaml(path)["jobs"].values()


def commands(path: Path) -> Iterator[str]:
    """What its steps run; of a matrix, all that it stands for."""
    for job in jobs(path):
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            command = step.get("run", "")
            variable = re.search(r"\$\{\{ matrix\.(\w+) \}\}", command)
            for value in matrix[variable[1]] if variable else [""]:
                yield command.replace(variable[0], value) if variable else command


def test_there_are_three() -> None:
    """The tests below would pass if there were none."""
    assert [path.name for path in FILES] == ["deep.yml", "release.yml", "tests.yml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_they_call_sessions_that_there_are(path: Path) -> None:
    """And options of ours that there are."""
    known = sessions()
    assert {"tests", "property", "lint", "chart"} <= known
    called = set()
    for command in commands(path):
        for said in re.findall(r"nox -s ([a-z ]+)", command):
            called |= set(said.split())
        for said in re.findall(r"&& sandd (.*)", command):
            build_parser().parse_args(said.split())
    assert called
    assert called <= known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_they_may_read_and_no_more(path: Path) -> None:
    """Unless a job says otherwise; each ends by itself, and each action has a version."""
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in jobs(path):
        assert 0 < job["timeout-minutes"] < 360
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])


def test_every_python_and_system_that_is_named_is_tried() -> None:
    """As the classifiers have them."""
    matrix = read_yaml(TOP / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"][
        "matrix"
    ]
    prefix = "Programming Language :: Python :: 3."
    named = [
        each[len(prefix) - 2 :] for each in PROJECT["project"]["classifiers"] if prefix in each
    ]
    assert matrix["python"] == named
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]


def test_a_release_is_published_without_a_secret() -> None:
    """By who the job is, which only the one that publishes may show, in an environment of its own."""
    release = read_yaml(TOP / ".github" / "workflows" / "release.yml")["jobs"]
    allowed = {name: job.get("permissions", {}) for name, job in release.items()}
    assert allowed == {
        "build": {},
        "publish": {"id-token": "write"},
        "attach": {"contents": "write"},
    }
    assert release["publish"]["environment"]["name"] == "pypi"
    assert not re.search(r"secrets\.|password", (TOP / ".github/workflows/release.yml").read_text())
    assert not any("checkout" in step.get("uses", "") for step in release["publish"]["steps"])
