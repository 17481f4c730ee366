"""What `import sandd` promises: every public name, documented and typed, at the price of none."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.resources import files

import pytest

import sandd
from sandd._core import _errors

INTERNAL_ERRORS = {"ConnectionLost"}
"""Errors that never leave the link layer."""


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has imported after a statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", sandd.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    """Each name in ``__all__`` is there, and says what it is in a docstring of its own."""
    value = getattr(sandd, name)

    if name != "__version__":
        assert value.__name__ == name
        # Not inspect.getdoc(): it would be content with the docstring of a base class.
        assert inspect.cleandoc(value.__doc__ or "")


def test_every_public_name_has_one_home() -> None:
    """``__all__`` and the table behind the lazy imports name the same things."""
    assert {*sandd._HOMES, "__version__"} == set(sandd.__all__)
    assert len(set(sandd.__all__)) == len(sandd.__all__)


def test_every_error_is_public() -> None:
    """Whatever sandd raises can be caught by a name from `sandd`."""
    errors = {
        name
        for name, value in vars(_errors).items()
        if inspect.isclass(value) and issubclass(value, _errors.SanddError)
    }

    assert errors - INTERNAL_ERRORS <= set(sandd.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as on any module, and ``hasattr`` works."""
    with pytest.raises(AttributeError, match="has no attribute 'open_controler'"):
        sandd.open_controler  # type: ignore[attr-defined] # noqa: B018 - that is the point
    assert not hasattr(sandd, "Demon")


def test_dir_shows_the_public_names() -> None:
    """Completion offers what has not been imported yet."""
    assert set(sandd.__all__) <= set(dir(sandd))


def test_import_sandd_alone_imports_no_dependency() -> None:
    """The spawner imports the package and must start in milliseconds."""
    added = modules_after("import sandd") - modules_after("pass")

    assert {name.partition(".")[0] for name in added} <= {"sandd"} | sys.stdlib_module_names
    assert {name for name in added if name.startswith("sandd")} == {"sandd"}
    assert "typing" not in added


def test_errors_come_without_the_controller() -> None:
    """Catching an error by its public name doesn't import trio."""
    assert "trio" not in modules_after("from sandd import SanddError")


def test_the_package_is_typed() -> None:
    """Type checkers read our annotations only if this marker is installed."""
    assert files("sandd").joinpath("py.typed").is_file()
