"""Every check there is, by name: `nox -s tests` while working, and `lint typecheck` before a push.

`nox -l` lists them all. Arguments after ``--`` go to the tool: ``nox -s tests -- -k cancel -x``.
"""

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"  # the first with download_python
nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "virtualenv"  # the same with and without uv on the machine
nox.options.reuse_venv = "yes"  # a second run should take seconds; `nox -R` skips installing too
nox.options.download_python = "never"  # a Python that is not here is left out

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # as the classifiers have them
PLATFORMS = ["linux", "darwin", "win32"]
NO_TIME_LIMIT = ["-o", "faulthandler_timeout=0"]


def install(session: nox.Session, group: str, *, project: bool = True) -> None:
    """What a dependency group of pyproject.toml names and, unless told otherwise, sandd itself."""
    needed = nox.project.dependency_groups(PROJECT, group)
    session.install(*(["--editable", "."] if project else []), *needed)


@nox.session
def tests(session: nox.Session) -> None:
    """All of tests/, with few examples for each property."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The same with each supported Python that is on this machine; `nox -s pythons-3.13` with one of them."""
    tests(session)


@nox.session(name="property")
def property_(session: nox.Session) -> None:
    """Only the property tests; `-- deep` first (or HYPOTHESIS_PROFILE=deep) makes it more than an hour."""
    install(session, "test")
    profile, arguments = os.environ.get("HYPOTHESIS_PROFILE", "quick"), [*session.posargs]
    if arguments[:1] == ["deep"]:
        profile = arguments.pop(0)
    limits = NO_TIME_LIMIT if profile == "deep" else []
    environment = {"HYPOTHESIS_PROFILE": profile}
    # Hypothesis' own plugin marks every test that uses it with its name.
    session.run("pytest", "-m", "hypothesis", *limits, *arguments, env=environment)


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage, child daemons included; 95 % is demanded of sandd/_core and the codec."""
    install(session, "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")
    demanding = "--include=sandd/_core/*,sandd/wire.py"
    session.run("coverage", "report", demanding, "--fail-under=95", "--format=total")


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, as linter and as judge of the formatting; `nox -s lint -- fix` lets it write."""
    install(session, "lint", project=False)
    if session.posargs == ["fix"]:
        session.run("ruff", "check", "--fix", ".")
        session.run("ruff", "format", ".")
    else:
        session.run("ruff", "check", *session.posargs, ".")
        session.run("ruff", "format", "--check", ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """mypy --strict, once for each platform: only then are all branches on sys.platform read."""
    install(session, "typecheck")
    for platform in PLATFORMS:
        # One cache each, or every run would throw the previous platform's away.
        cache = f".mypy_cache/{platform}"
        session.run("mypy", "--strict", "--platform", platform, "--cache-dir", cache)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, its examples and examples/: warnings are errors, and everything runs."""
    install(session, "docs")
    output = Path("docs/_build")
    for builder in ("html", "doctest"):
        session.run("sphinx-build", "-W", "--keep-going", "-b", builder, "docs", output / builder)
    # A package index renders the README by docutils alone, without Sphinx' additions.
    session.run("docutils", "--strict", "--writer=html5", "README.rst", output / "README.html")
    for example in sorted(Path("examples").glob("*.py")):
        session.run("python", example)  # an example ends by itself, with exit status 0


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks; see benchmarks/ for what each one measures."""
    session.install("--editable", ".")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def bench_peers(session: nox.Session) -> None:
    """Ours beside others that do the same, which are installed in .peers/; see docs/performance.rst."""
    session.install("--editable", ".")
    session.run("python", "-m", "benchmarks.peers", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """What must not happen in minutes, either: `-- cuts`, `-- stalled` or `-- restart`."""
    session.install("--editable", ".")
    session.run("python", "-m", "benchmarks.soak", *session.posargs)


@nox.session
def guest(session: nox.Session) -> None:
    """The tests of limits with control groups v2, in a kernel of their own; needs Debian's user-mode-linux."""
    install(session, "test")
    session.run("python", "tests/guest/run.py", *session.posargs)


@nox.session
def chart(session: nox.Session) -> None:
    """``helm lint``, by Helm's own code from a package, of deploy/helm; it needs Python 3.12 and Linux."""
    install(session, "test")
    session.install(*nox.project.dependency_groups(PROJECT, "chart"))
    session.run("pytest", "tests/test_deploy_helm.py", *session.posargs)


CHECK_INSTALLED = """
import importlib.metadata, importlib.resources, sandd
assert sandd.__version__ == importlib.metadata.version("trio-sandd"), sandd.__version__
assert importlib.resources.files("sandd").joinpath("py.typed").is_file(), "py.typed is missing"
for name in sandd.__all__:
    getattr(sandd, name)
print("installed:", sandd.__version__, "from", sandd.__file__)
"""


@nox.session
def build(session: nox.Session) -> None:
    """The sdist and a wheel built from it, installed where nothing else is, and imported."""
    install(session, "build", project=False)
    temporary = Path(session.create_tmp()).resolve()
    shutil.rmtree(temporary)  # it outlives the session, and an old wheel would be installed too
    archives, fresh = temporary / "dist", temporary / "venv"
    session.run("python", "-m", "build", "--outdir", archives)
    session.run("virtualenv", "--quiet", fresh)
    (wheel,) = archives.glob("*.whl")
    bin_dir = fresh / ("Scripts" if os.name == "nt" else "bin")
    python = str(bin_dir / "python")
    session.run(python, "-m", "pip", "install", "--quiet", wheel, external=True)
    with session.chdir(temporary):  # not in the checkout, whose sandd/ would be imported instead
        session.run(python, "-c", CHECK_INSTALLED, external=True)
        session.run(str(bin_dir / "sandd"), "--version", external=True)
