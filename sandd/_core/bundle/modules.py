"""Which modules a daemon can come to import: found by reading the imports in their text, and importing none of them.

So what is imported late, or on another platform, is among them, and what happens to be installed beside it is not.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from sandd._core._errors import ConfigurationError
from sandd._core.bundle.trimming import statements_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.machinery import ModuleSpec

ROOTS: Final = ("sandd.daemon", "sandd._core.processes.spawner")
"""The programs: the second is started by the first, which imports nothing of it."""
CARRIED: Final = frozenset(
    [
        "attr",
        "attrs",
        "cattrs",
        "h11",
        "idna",
        "msgpack",
        "outcome",
        "pathspec",
        "prometheus_client",
        "sandd",
        "sniffio",
        "sortedcontainers",
        "structlog",
        "trio",
        "trio_websocket",
        "typing_extensions",
        "wsproto",
    ]
)
"""Top-level names that are carried, as far as they are reached: all have, or are, pure Python. A daemon does without
any other that it names: websockets (masks faster, in C), watchfiles (in Rust), rich (tracebacks in colour)."""
LEFT_OUT: Final = (
    "trio.testing",
    *("trio._core._io_windows", "trio._core._windows_cffi", "trio._subprocess_platform.windows"),
    "sandd._core.machine_windows",
    *(
        f"sandd._core.processes.windows{part}"
        for part in ("", "_child", "_job_objects", "_pywinpty", "_terminal")
    ),
)
"""Reached by the text, and never by a daemon: what is for tests, and Windows, where trio needs C code."""
_FOR_TYPES: Final = frozenset({"TYPE_CHECKING", "typing.TYPE_CHECKING", "t.TYPE_CHECKING"})


@frozen
class Module:
    """One module's file, here and in the archive."""

    name: str
    path: Path
    is_package: bool
    source: bytes = field(repr=False)
    tree: ast.Module = field(repr=False, eq=False)

    @classmethod
    def read(cls, name: str, path: Path, *, is_package: bool) -> Module:
        """From its file."""
        source = path.read_bytes()
        return cls(name, path, is_package, source, ast.parse(source, str(path)))

    @property
    def package(self) -> str:
        """What its relative imports are relative to."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def archived_as(self) -> str:
        """Its place in the archive."""
        inside = self.name.replace(".", "/")
        return f"{inside}/__init__.py" if self.is_package else f"{inside}.py"


def find_modules(roots: tuple[str, ...] = ROOTS) -> dict[str, Module]:
    """The modules that these can come to import, themselves included, by name.

    Raises:
        ConfigurationError: a package that a daemon needs is not installed here, or not as files.
    """
    found: dict[str, Module] = {}
    seen: set[str] = set()
    specs: dict[str, ModuleSpec | None] = {}
    todo = [*roots]
    while todo:
        name = todo.pop()
        if name in seen or name.partition(".")[0] not in CARRIED or _is_left_out(name):
            continue
        seen.add(name)
        module = _locate(name, specs)
        if module is None:
            continue  # a name in a module, or what isn't there, and is tried for
        found[name] = module
        parts = name.split(".")
        todo += [".".join(parts[:count]) for count in range(1, len(parts))]
        todo += _imports(module.tree, module.package)
    # Of those that are asked for: what a newer version of another package does without is not missed.
    missing = {name.partition(".")[0] for name in seen} - {name.partition(".")[0] for name in found}
    if missing:
        raise ConfigurationError(
            f"a daemon needs {', '.join(sorted(missing))}, and there are no files of that here: bundle it with the "
            "sandd of an ordinary installation (pip install)"
        )
    return found


def _is_left_out(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in LEFT_OUT)


def _locate(name: str, specs: dict[str, ModuleSpec | None]) -> Module | None:
    top, *rest = name.split(".")
    # Of the top alone: looking for anything below it would import what is above.
    spec = specs[top] if top in specs else specs.setdefault(top, find_spec(top))
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        return None if rest or not origin.is_file() else Module.read(name, origin, is_package=False)
    inside = origin.parent.joinpath(*rest)
    for path, is_package in ((inside / "__init__.py", True), (inside.with_suffix(".py"), False)):
        if path.is_file() and (rest or is_package):
            return Module.read(name, path, is_package=is_package)
    return None


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """What is imported in it, wherever it stands; of ``from x import y`` both x and x.y, whatever y is."""
    todo: list[ast.AST] = [tree]
    while todo:
        statement = todo.pop()
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                parts = package.split(".")
                above = parts[: len(parts) - statement.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in statement.names)
        elif isinstance(statement, ast.If) and _is_for_types(statement.test):
            todo += statement.orelse
        else:
            todo += statements_in(statement)


def _is_for_types(test: ast.expr) -> bool:
    # To have any other test as text would take longer than all that is looked for.
    return isinstance(test, ast.Name | ast.Attribute) and ast.unparse(test) in _FOR_TYPES
