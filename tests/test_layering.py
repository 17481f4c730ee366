"""Imports point down only, and each layer touches only what it is allowed to.

The layers are those of DESIGN's section 3 and of the map at the top of sandd/__init__.py. A new
module must be entered here: deciding where it belongs is part of writing it. Imports under ``if
TYPE_CHECKING:`` don't run, and so don't count unless a test says so.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attrs import frozen

import sandd

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(sandd.__file__).parent

CONTROLLER_END = [
    "sandd._core.acceptor",
    "sandd._core.arguments",
    "sandd._core.asking",
    "sandd._core.audit.keys",
    "sandd._core.audit.options",
    "sandd._core.audit.segments",
    "sandd._core.audit.verifying",
    "sandd._core.audit.writer",
    "sandd._core.bundle.*",
    "sandd._core.commands",
    "sandd._core.controller_options",
    "sandd._core.controller_state",
    "sandd._core.copying",
    "sandd._core.daemon_handle",
    "sandd._core.directory",
    "sandd._core.held_job",
    "sandd._core.identity.administration",
    "sandd._core.identity.database",
    "sandd._core.identity.gate",
    "sandd._core.identity.journal",
    "sandd._core.identity.store",
    "sandd._core.job_link",
    "sandd._core.job_streams",
    "sandd._core.local_link",
    "sandd._core.operators",
    "sandd._core.policy.tenants",
    "sandd._core.port_forwards",
    "sandd._core.port_streams",
    "sandd._core.process_handle",
    "sandd._core.pure_remote_path",
    "sandd._core.reception",
    "sandd._core.recorder",
    "sandd._core.registry",
    "sandd._core.remote_files",
    "sandd._core.remote_link",
    "sandd._core.remote_path",
    "sandd._core.services",
    "sandd._core.session_handle",
    "sandd._core.specs",
    "sandd._core.statistics_stream",
    "sandd._core.tracing",
    "sandd._core.tls.authority",
    "sandd._core.tls.certificates",
    "sandd._core.tls.files",
    "sandd._core.tls.renewal",
    "sandd.controller",
]
DAEMON_END = [
    "sandd._core.daemon_end",
    "sandd._core.daemon_figures",
    "sandd._core.daemon_options",
    "sandd._core.daemon_program",
    "sandd._core.file_requests",
    "sandd._core.identity.keyring",
    *(f"sandd._core.isolation.{name}" for name in ("allotments", "bubblewrap", "confining")),
    *(f"sandd._core.isolation.{name}" for name in ("credentials", "options", "probing")),
    *(f"sandd._core.isolation.{name}" for name in ("rulesets", "tenant_files")),
    *(f"sandd._core.isolation.{name}" for name in ("tenant_requests", "workspaces")),
    "sandd._core.job_requests",
    "sandd._core.machine",
    "sandd._core.machine_windows",
    "sandd._core.policy.executables",
    "sandd._core.policy.gate",
    "sandd._core.policy.granted_files",
    "sandd._core.policy.permits",
    "sandd._core.port_requests",
    "sandd._core.processes",
    "sandd._core.processes.*",
    "sandd._core.requests",
    "sandd._core.runner",
    "sandd._core.spawn_requests",
    "sandd._core.spool_files",
    "sandd._core.spooler",
    "sandd._core.statistics_requests",
    "sandd._core.transfer_requests",
    "sandd._core.watch_requests",
    "sandd.daemon",
]
"""What only one of the two programs is made of; they never import each other."""

LAYERS = {
    "errors": ["sandd._core._errors"],
    "values": ["sandd._core.limits"],
    "spawner": [
        "sandd._core.processes.child_limits",
        "sandd._core.processes.control_groups",
        "sandd._core.processes.culling",
        "sandd._core.processes.exec_lock",
        "sandd._core.processes.exit_watch",
        "sandd._core.processes.forked_launch",
        "sandd._core.processes.job_trees",
        "sandd._core.processes.landlock",
        "sandd._core.processes.launcher",
        "sandd._core.processes.limit_cells",
        "sandd._core.processes.limit_groups",
        "sandd._core.processes.limit_keeper",
        "sandd._core.processes.named_tuples",
        "sandd._core.processes.process_table",
        "sandd._core.processes.quick_fork",
        "sandd._core.processes.program_search",
        "sandd._core.processes.readiness",
        "sandd._core.processes.spawner",
        "sandd._core.processes.spawner_messages",
    ],
    "wire": ["sandd.wire"],
    "sans-IO": [
        "sandd._core.admission",
        "sandd._core.asciicast",
        "sandd._core.audit.chain",
        "sandd._core.audit.changes",
        "sandd._core.audit.comings",
        "sandd._core.audit.escaping",
        "sandd._core.audit.flood",
        "sandd._core.audit.records",
        "sandd._core.audit.redaction",
        "sandd._core.audit.sinks",
        "sandd._core.audit.trail",
        "sandd._core.backlog",
        *("sandd._core.bundle.script", "sandd._core.bundle.trimming"),
        "sandd._core.byte_ring",
        "sandd._core.channels",
        "sandd._core.client",
        "sandd._core.client_job",
        "sandd._core.credit",
        "sandd._core.daemon_statistics",
        "sandd._core.fencing",
        "sandd._core.file_status",
        "sandd._core.held_requests",
        "sandd._core.identity.introductions",
        "sandd._core.identity.passes",
        "sandd._core.identity.proofs",
        "sandd._core.identity.records",
        "sandd._core.identity.rights",
        "sandd._core.identity.tokens",
        *("sandd._core.isolation.levels",),
        "sandd._core.job",
        "sandd._core.job_info",
        "sandd._core.jobs",
        "sandd._core.kept_ends",
        "sandd._core.link",
        *(f"sandd._core.metrics.{name}" for name in ("comings", "histograms", "job_census")),
        *(f"sandd._core.metrics.{name}" for name in ("link_bytes", "audit_counts", "catalogue")),
        *(f"sandd._core.metrics.{name}" for name in ("daemon_tally", "http_answers", "readings")),
        *(f"sandd._core.metrics.{name}" for name in ("loop_lag", "population", "router_counts")),
        *(f"sandd._core.metrics.{name}" for name in ("statistics", "tallies")),
        "sandd._core.pace",
        "sandd._core.rate_limits",
        "sandd._core.rate_limits.*",
        *(f"sandd._core.policy.{name}" for name in ("environment", "judging", "linting")),
        *(f"sandd._core.policy.{name}" for name in ("paths", "patterns", "reading")),
        *(f"sandd._core.policy.{name}" for name in ("refusing", "rules")),
        "sandd._core.read_ahead",
        "sandd._core.relay_queue",
        "sandd._core.results",
        "sandd._core.ring_room",
        "sandd._core.router",
        "sandd._core.router_links",
        "sandd._core.scheduler",
        "sandd._core.spool",
        "sandd._core.spooled_log",
        "sandd._core.streams",
        "sandd._core.tls.key_pair",
        "sandd._core.tls.pins",
        "sandd._core.tls.plain",
        "sandd._core.tls.rotation",
        "sandd._core.tls.trust_options",
        "sandd._core.tombstones",
        "sandd._core.transfers.agenda",
        "sandd._core.transfers.arrivals",
        "sandd._core.transfers.records",
        "sandd._core.transfers.result",
    ],
    "shells": [
        "sandd._core.dialer",
        "sandd._core.files",
        "sandd._core.files.*",
        "sandd._core.interrupts",
        "sandd._core.large_buffers",
        "sandd._core.policy.trust",
        "sandd._core.logs",
        *(f"sandd._core.metrics.{name}" for name in ("exposition", "listener", "readiness")),
        "sandd._core.nurseries",
        "sandd._core.early_stop",
        *("sandd._core.own_output", "sandd._core.parsing", "sandd._core.program_options"),
        "sandd._core.link_watch",
        "sandd._core.pump",
        "sandd._core.secret_environment",
        "sandd._core.service_manager",
        "sandd._core.sockets",
        "sandd._core.state_directory",
        "sandd._core.tls.contexts",
        "sandd._core.tls.trust",
        "sandd._core.transfers.*",
        "sandd._core.transport",
        "sandd._core.transport.*",
    ],
    "ends": [*CONTROLLER_END, *DAEMON_END],
    "terminal": [
        f"sandd.terminal.{name}"
        for name in (
            *(
                "blocking",
                "conversation",
                "escapes",
                "local",
                "modes",
                "posix",
                "replay",
                "windows",
            ),
        )
    ],
    "facade": [
        *("sandd._core.bridge", "sandd._core.held_block"),
        *("sandd._core.kept_pieces", "sandd._core.promise"),
        *("sandd._core.aio.*", "sandd.aio"),
        *("sandd._core.server_files", "sandd._core.server_job", "sandd._core.server_streams"),
        *(
            "sandd._core.server_process",
            "sandd._core.server_session",
            "sandd.client",
            "sandd.server",
        ),
    ],
    "testing": ["sandd.testing.*"],
    "command": [
        *("sandd.__main__", "sandd.cli", "sandd.demo", "sandd.demo.*", "sandd.local_daemon"),
        "sandd.auditing.*",
        "sandd.bundling.*",
        "sandd.certificates.*",
        "sandd.completion",
        "sandd.command_line.*",
        "sandd.copying.*",
        "sandd.enrolling.*",
        "sandd.executing.*",
        "sandd.fleet.*",
        "sandd.forwarding.*",
        "sandd.policing.*",
        "sandd.standalone.*",
        "sandd.terminal.*",
    ],
    "package": [
        *("sandd", "sandd._core", "sandd._core.aio", "sandd._core.identity"),
        *("sandd._core.audit", "sandd._core.isolation", "sandd._core.metrics", "sandd.auditing"),
        *("sandd._core.bundle", "sandd.bundling"),
        *("sandd._core.policy", "sandd._core.tls", "sandd._core.transfers", "sandd.testing"),
        *("sandd.certificates", "sandd.command_line", "sandd.copying", "sandd.enrolling"),
        "sandd.executing",
        *("sandd.fleet", "sandd.forwarding", "sandd.policing", "sandd.standalone"),
        "sandd.terminal",
    ],
}
"""Lowest first. ``package.*`` stands for its modules that have no entry of their own."""

PURE = {"errors", "values", "wire", "sans-IO"}
PURE_PACKAGES = {"attr", "attrs", "cattrs", "msgpack"}
"""What a layer without I/O may import besides the standard library."""
IMPURE_MODULES = {
    *("asyncio", "concurrent", "multiprocessing", "queue", "sched", "threading"),
    *("datetime", "time"),
    *("fcntl", "pty", "select", "selectors", "socket", "ssl", "subprocess", "termios"),
    *("logging", "warnings"),
}
"""Of the standard library, what waits, reads a clock, does I/O or logs."""


@frozen
class Import:
    """One imported module, and when the import runs."""

    name: str
    line: int
    for_types: bool
    """Under ``if TYPE_CHECKING:``: never runs."""
    deferred: bool
    """Inside a function: runs when that is called, not when the module is imported."""

    @property
    def package(self) -> str:
        """The top-level name, which tells whose module it is."""
        return self.name.partition(".")[0]


def module_name(path: Path) -> str:
    """The dotted name of a file of ours."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_in(
    tree: ast.AST, package: str, *, for_types: bool = False, deferred: bool = False
) -> Iterator[Import]:
    """Every import below a node, wherever it stands."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            continue  # most of a tree, and no statement is in it
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, for_types, deferred)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                # `from package import thing`: a module if there is one of that name.
                submodule = f"{base}.{alias.name}"
                if submodule == "sandd.__version__":
                    continue  # the one thing the package's own file holds; it is loaded anyway
                yield Import(
                    submodule if submodule in FILES else base, node.lineno, for_types, deferred
                )
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            negated = isinstance(node.test, ast.UnaryOp)
            for branch, is_for_types in ((node.body, not negated), (node.orelse, negated)):
                block = ast.Module(body=branch, type_ignores=[])
                yield from imports_in(
                    block, package, for_types=for_types or is_for_types, deferred=deferred
                )
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports_in(node, package, for_types=for_types, deferred=deferred or inside)


@cache  # and not read before the first test asks: each process that collects tests imports this file
def imports_of(module: str) -> list[Import]:
    """Every import in a module of ours."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(imports_in(ast.parse(path.read_text("utf-8")), package))


def is_named(module: str, names: list[str]) -> bool:
    """Whether a list has the module, or its package with ``.*``."""
    return any(fnmatchcase(module, name) for name in names)


@cache
def layers_of(module: str) -> list[str]:
    """The layers that claim a module: exactly one, or the module or this file is wrong."""
    exact = [layer for layer, names in LAYERS.items() if module in names]
    return exact or [layer for layer, names in LAYERS.items() if is_named(module, names)]


def height(module: str) -> int:
    """The layer's number from below."""
    (layer,) = layers_of(module)
    return list(LAYERS).index(layer)


@cache
def modules_of(*layers: str) -> list[str]:
    """The modules there are in these layers."""
    return [module for module in FILES if set(layers_of(module)) & set(layers)]


def loaded_by(module: str, *, packages: bool = True) -> dict[str, str]:
    """What importing a module of ours imports in its turn, each with who asks for it.

    Its packages' own files are imported with it, unless the importer sees to it that they aren't.
    """
    seen: dict[str, str] = {}
    todo = [(module, "the test")]
    while todo:
        current, asker = todo.pop()
        if current in seen:
            continue
        seen[current] = asker
        if current in FILES:
            parts = current.split(".") if packages else []
            todo += [(".".join(parts[:count]), current) for count in range(1, len(parts))]
            todo += [
                (each.name, current)
                for each in imports_of(current)
                if not each.for_types and not each.deferred
            ]
    return seen


# One test for all modules: one for each took seconds, for each of the processes that collect them.


def test_every_module_is_in_one_layer() -> None:
    """A new module has been given its place in `LAYERS`."""
    assert {module: layers_of(module) for module in FILES if len(layers_of(module)) != 1} == {}


def test_imports_point_down() -> None:
    """Nothing imports from a layer above its own, not even inside a function.

    The package's own file is the exception: it re-exports everything, on first use.
    """
    upwards = [
        f"{module}, line {each.line}: {each.name}"
        for module in modules_of(*LAYERS)
        for each in imports_of(module)
        if each.name in modules_of(*LAYERS) and not each.for_types
        if height(each.name) > height(module)
    ]

    assert upwards == []


def test_imports_make_no_circle() -> None:
    """Also within a layer there is an order in which the modules can be read."""
    graph = {
        module: {
            each.name
            for each in imports_of(module)
            if each.name in FILES and each.name != module and not (each.for_types or each.deferred)
        }
        for module in FILES
    }

    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_packages_import_nothing_of_ours() -> None:
    """Whoever imports one module doesn't get the others along: re-exports happen on first use."""
    for module in modules_of("package"):
        loaded = {each.name for each in imports_of(module) if not (each.for_types or each.deferred)}
        assert not [name for name in loaded if name.startswith("sandd")]


def test_controller_and_daemon_never_load_each_other() -> None:
    """Not directly and not through anything they import; the two share only what is below both."""
    for module in modules_of("ends"):
        mine, theirs = CONTROLLER_END, DAEMON_END
        if not is_named(module, mine):
            mine, theirs = theirs, mine

        assert not [name for name in loaded_by(module) if is_named(name, theirs)], module


def test_only_the_transport_knows_the_websocket_library() -> None:
    """Another library could take its place by changing one package; types count too."""
    libraries = {"trio_websocket", "wsproto", "websockets"}
    for module in FILES:
        if not fnmatchcase(module, "sandd._core.transport*"):
            assert not {each.package for each in imports_of(module)} & libraries, module


def test_state_machines_do_no_io() -> None:
    """No trio, no socket, no clock, no log: neither they nor anything they import of ours."""
    for module in modules_of(*PURE):
        for name, asker in loaded_by(module).items():
            package = name.partition(".")[0]
            assert package not in IMPURE_MODULES or asker not in FILES, f"{asker} imports {name}"
            if name not in FILES and package not in sys.stdlib_module_names:
                assert package in PURE_PACKAGES, f"{asker} imports {name}"


def test_state_machines_defer_no_import() -> None:
    """What they need they say at the top; a late import would escape the test above."""
    for module in modules_of(*PURE):
        assert not [each for each in imports_of(module) if each.deferred], module


@pytest.mark.parametrize("module", modules_of("spawner"))
def test_the_spawner_needs_the_standard_library_only(module: str) -> None:
    """It must start in milliseconds and stay small: every job is its child.

    It is started in a way that leaves the packages' own files out.
    """
    for name, asker in loaded_by(module, packages=False).items():
        standard = name.partition(".")[0] in sys.stdlib_module_names
        assert standard or name in modules_of("spawner"), f"{asker} imports {name}"
    assert not [each for each in imports_of(module) if each.deferred and each.package == "sandd"]


def test_the_errors_import_nothing_of_ours() -> None:
    """Every layer raises from the exception tree, so it can stand on none of them."""
    names = [each.name for each in imports_of("sandd._core._errors") if not each.for_types]

    assert not [name for name in names if name.startswith("sandd")]
