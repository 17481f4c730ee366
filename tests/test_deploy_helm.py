"""The Helm chart: its values keep to their schema, it names what there is, and Helm, where it is, finds no fault."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import pytest
import yaml
from deployment import DEPLOY, VARIABLES, read_yaml

import sandd

if TYPE_CHECKING:
    from pathlib import Path

CHART: Final = DEPLOY / "helm" / "sandd"
TEMPLATES: Final = {
    path.name: path.read_text("utf-8") for path in sorted((CHART / "templates").iterdir())
}
VALUES: Final[dict[str, Any]] = read_yaml(CHART / "values.yaml")
SCHEMA: Final[dict[str, Any]] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
PIN: Final = "sha256:" + 64 * "a"


def test_the_chart_is_of_this_version() -> None:
    """What is not said otherwise is taken from it, such as the images' tags."""
    chart = read_yaml(CHART / "Chart.yaml")
    assert (chart["apiVersion"], chart["name"], chart["appVersion"]) == (
        "v2",
        "sandd",
        sandd.__version__,
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", chart["version"])


def test_its_values_are_what_the_schema_says() -> None:
    """And each of them is described there, so that a misspelt one is told."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)

    def compare(values: dict[str, Any], schema: dict[str, Any]) -> None:
        for name, value in values.items():
            described = schema["properties"][name]
            if isinstance(value, dict) and "properties" in described:
                compare(value, described)

    compare(VALUES, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("controller", "tls"), "Auto!"),
        (("controller", "service", "port"), 0),
        (("controller", "audit"), "yes"),
        (("daemon", "kind"), "Job"),
        (("daemon", "caPin"), "sha256:1"),
        (("daemon", "misspelt"), 1),
        (("metrics", "port"), "9464"),
    ],
)
def test_what_makes_no_sense_is_refused(path: tuple[str, ...], value: object) -> None:
    """By the schema, and so by Helm, before anything is changed in a cluster."""
    values = json.loads(json.dumps(VALUES))
    place = values
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_templates_name_values_that_there_are() -> None:
    """A misspelt one would be empty, and nothing would say so."""
    named = {
        name for text in TEMPLATES.values() for name in re.findall(r"\.Values((?:\.\w+)+)", text)
    }
    assert len(named) > 15
    for name in named:
        place: Any = VALUES
        for part in name.split(".")[1:]:
            assert part in place, name
            place = place[part]


def test_templates_name_variables_that_are_read() -> None:
    """By the program in question."""
    for file, prefix in (("controller.yaml", "SANDD_CONTROLLER_"), ("daemon.yaml", "SANDD_")):
        named = set(re.findall(r"name: (SANDD_\w+)", TEMPLATES[file]))
        assert len(named) > 5
        assert named <= VARIABLES
        assert all(name.startswith(prefix) for name in named)
        assert "SANDD_CONTROLLER" in prefix or not any("CONTROLLER" in name for name in named)


def test_what_kubernetes_asks_is_answered() -> None:
    """Liveness and readiness, at the port where that is."""
    for file in ("controller.yaml", "daemon.yaml"):
        probes = re.findall(
            r"(\w+)Probe:\n +httpGet: \{path: (\S+), port: (\w+)\}", TEMPLATES[file]
        )
        assert probes == [
            ("startup", "/healthz", "metrics"),
            ("liveness", "/healthz", "metrics"),
            ("readiness", "/readyz", "metrics"),
        ]


# ---- Helm itself --------------------------------------------------------------------------------

HAS_LIBRARY: Final = importlib.util.find_spec("helm_sdkpy") is not None
LINT: Final = """
import asyncio, sys, helm_sdkpy
try:
    found = asyncio.run(helm_sdkpy.Lint(helm_sdkpy.Configuration()).run(sys.argv[1]))
except helm_sdkpy.HelmError as error:
    print(error)
else:
    for each in found["Messages"]:
        if each["Severity"] > 1:  # a warning, or an error
            print(each)
    for each in found["Errors"] or ():
        print(each)
"""
"""In a process of its own: its runtime keeps what it opens."""


def lint(chart: Path) -> list[str]:
    """What ``helm lint`` finds that is more than information."""
    if shutil.which("helm"):
        done = subprocess.run(["helm", "lint", str(chart)], capture_output=True, text=True)
        return [line for line in done.stdout.splitlines() if re.match(r"\[(WARNING|ERROR)\]", line)]
    done = subprocess.run(
        [sys.executable, "-c", LINT, str(chart)], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(
    not (HAS_LIBRARY or shutil.which("helm")), reason="there is no Helm here: nox -s chart"
)
@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="as it is"),
        pytest.param(
            {"daemon": {"enabled": True, "caPin": PIN, "labels": {"a": "b"}}}, id="deployment"
        ),
        pytest.param(
            {"daemon": {"enabled": True, "caPin": PIN, "kind": "DaemonSet"}}, id="daemon set"
        ),
        pytest.param(
            {"controller": {"tls": "of-mine"}, "existingSecret": "x"}, id="secrets of one's own"
        ),
    ],
)
def test_helm_finds_no_fault(values: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """In whatever way it is used; it fills in the templates, and reads what they give."""
    copy = tmp_path / "sandd"
    shutil.copytree(CHART, copy)
    merged = {
        name: {**given, **values.get(name, {})}
        if isinstance(given, dict)
        else values.get(name, given)
        for name, given in VALUES.items()
    }
    (copy / "values.yaml").write_text(yaml.safe_dump(merged))
    assert lint(copy) == []
    (copy / "templates" / "daemon.yaml").write_text("{{ .Values.controller.no.such }}")
    assert lint(copy) != []  # it would have seen it
