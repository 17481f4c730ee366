"""The peers' packages from PyPI: each in a directory of its own, for the original is called `sandd`, too."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path

import sandd

PROJECT = Path(__file__).parent.parent.parent
DIRECTORY = PROJECT / ".peers" / f"python{sys.version_info.major}.{sys.version_info.minor}"
"""In the checkout, and unknown to git; another Python can't load what was built for this one."""
REQUIREMENTS = {"original": "sandd==0.2.1", "asyncssh": "asyncssh==2.24.*"}
_IMPORTED = {"original": "sandd", "asyncssh": "asyncssh"}


def find(name: str) -> Path | None:
    """The directory that has the package; None if it isn't installed."""
    place = DIRECTORY / name
    return place if (place / _IMPORTED[name]).is_dir() else None


def install(name: str) -> str | None:
    """Install it unless it is; the last that pip said where that doesn't work."""
    if find(name) is not None:
        return None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(DIRECTORY / name), REQUIREMENTS[name]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


def versions() -> dict[str, str]:
    """Of everything that is compared, as far as it is here."""
    found = {"sandd": sandd.__version__, "trio": version("trio")}
    found["trio-websocket"] = version("trio-websocket")
    for name, module in _IMPORTED.items():
        for each in distributions(name=module, path=[str(DIRECTORY / name)]):
            found[name] = each.version
    try:
        result = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True)
        found["OpenSSH"] = result.stderr.split(",")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return found
