"""The file: modules, licences, and what a Python runs first. The same packages give the same bytes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import marshal
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandd import __version__
from sandd._core.bundle.modules import find_modules
from sandd._core.bundle.trimming import without_words

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME: Final = "sandd-daemon.pyz"
SHEBANG: Final = b"#!/usr/bin/env python3\n"
MAIN: Final = """\
import sys

# This much any Python understands, also one that can go no further.
if sys.version_info < (3, 11):
    sys.stderr.write("sandd-daemon: error: this needs Python 3.11 or later, and %s is %s\\n" % (
        sys.executable, sys.version.split()[0]))
    sys.exit(2)
if sys.platform == "win32":
    sys.stderr.write("sandd-daemon: error: on Windows this can't run: install it there (pip install trio-sandd)\\n")
    sys.exit(2)

from sandd.daemon import main

sys.exit(main(prog="sandd-daemon.pyz"))
"""
CHANGED: Final = b"# Changed: comments and docstrings were left out.\n"
"""At the end of others' modules, whose licences ask for it, where no line number changes."""
_TIME: Final = (1980, 1, 1, 0, 0, 0)
"""Of each entry: the first that a zip can have."""
_UNCHECKED_HASH: Final = 1
"""PEP 552: bytecode that is never compared with its source, which can't change in here."""
_LICENCE: Final = re.compile(r"(?i)(licen[cs]e|copying|notice|authors)")


def make_bundle(*, bytecode: bool = False) -> bytes:
    """The daemon as a file that ``python3 -I FILE`` runs. Takes seconds, of a processor.

    Args:
        bytecode: carry what this Python would compile again at each start, too. Others pass over it.

    Raises:
        ConfigurationError: a package that a daemon needs is not installed here as files.
    """
    entries: dict[str, bytes] = {"__main__.py": MAIN.encode()}
    tops = set()
    for name, module in find_modules().items():
        top = name.partition(".")[0]
        tops.add(top)
        text = without_words(module.source, module.tree)
        if top != "sandd":
            text += b"\n" * (not text.endswith(b"\n")) + CHANGED
        entries[module.archived_as] = text
        if bytecode:
            entries[f"{module.archived_as}c"] = _compiled(text, module.archived_as)
    for distribution in _distributions(tops - {"sandd"}):
        entries |= _papers(distribution.name, distribution.version, _licences(distribution))
    entries |= _papers("trio-sandd", __version__, _our_licence())
    return _zipped(entries)


def _compiled(text: bytes, name: str) -> bytes:
    code = compile(text, name, "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little") + bytes(8)
    return head + marshal.dumps(code)


def _distributions(tops: Iterable[str]) -> list[importlib.metadata.Distribution]:
    known = importlib.metadata.packages_distributions()
    names = {name for top in tops for name in known.get(top, ())}
    return [importlib.metadata.distribution(name) for name in sorted(names)]


def _papers(name: str, version: str, licences: dict[str, bytes]) -> dict[str, bytes]:
    """A distribution's name and version, for whoever asks by `importlib.metadata`, and its licences."""
    directory = f"{name.replace('-', '_')}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    papers = {f"{directory}/licenses/{file}": text for file, text in licences.items()}
    return {f"{directory}/METADATA": head.encode(), **papers}


def _licences(distribution: importlib.metadata.Distribution) -> dict[str, bytes]:
    return {
        file.name: Path(str(file.locate())).read_bytes()
        for file in distribution.files or ()
        if ".dist-info" in file.parts[0] and _LICENCE.match(file.name)
    }


def _our_licence() -> dict[str, bytes]:
    try:
        found = _licences(importlib.metadata.distribution("trio-sandd"))
    except importlib.metadata.PackageNotFoundError:
        found = {}
    beside = Path(__file__).parents[3] / "LICENSE"  # not installed, but checked out
    return found or ({beside.name: beside.read_bytes()} if beside.is_file() else {})


def _zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    buffer.write(SHEBANG)  # first, and known to the zip: its offsets count from the file's start
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, _TIME)
            info.create_system = 3  # Unix, wherever it is made
            info.external_attr = 0o100644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, entries[name], compresslevel=9)
    return buffer.getvalue()
