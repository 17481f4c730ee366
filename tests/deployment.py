"""What is in ``deploy/`` and ``.github/``, for tests that hold it to the rest of the project."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

import yaml

from sandd._core import controller_options, daemon_options

TOP: Final = Path(__file__).parent.parent
DEPLOY: Final = TOP / "deploy"
PROJECT: Final[dict[str, Any]] = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))
VARIABLES: Final = {
    *(name for names in daemon_options._VARIABLES.values() for name in names),
    *(name for names in controller_options.VARIABLES.values() for name in names),
    daemon_options.TOKEN_VARIABLE,
}
"""All that either program reads."""


def read_yaml(path: Path) -> Any:
    """A file with one document."""
    return yaml.safe_load(path.read_text("utf-8"))
