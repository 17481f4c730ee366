"""Sphinx' settings; ``nox -s docs`` builds, and turns every warning into an error."""

import inspect
import sys
from pathlib import Path

import sandd
from sandd._core import _errors

sys.path.insert(0, str(Path(__file__).parent))  # for wire_tables

project = "sandd"
author = copyright = "The sandd authors"
version = release = sandd.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "wire_tables"]
html_theme = "furo"
html_title = f"sandd {release}"
default_role = "literal"  # `name` reads as code, here as in docstrings
autodoc_member_order = "bysource"
suppress_warnings = [
    "ref.python"
]  # in an annotation, `Controller` may be that of sandd or of sandd.aio
BUILT_BY_USERS = {"sandd.Server"}


def setup(app):
    """Called by Sphinx: a reference of what users see, and no more."""

    def hide_constructor(_app, what, name, _object, _options, signature, _returns):
        hidden = what in {"class", "exception"} and name not in BUILT_BY_USERS
        return ("", "") if hidden and signature else None

    # napoleon reads an attribute's "what: more" as a type and its meaning; ours are prose.
    prose = {}

    def keep(_app, what, name, _object, _options, lines):
        if what in {"attribute", "property"}:
            prose[name] = [*lines]

    def restore(_app, _what, name, _object, _options, lines):
        lines[:] = prose.pop(name, lines)

    # Sphinx reads what is said of attributes in the file of the module that a class says it is in.
    for _, error in inspect.getmembers(_errors, inspect.isclass):
        if issubclass(error, sandd.SanddError):
            error.__module__ = _errors.__name__

    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", restore, priority=600)
