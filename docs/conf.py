"""Sphinx' settings; ``nox -s docs`` builds, and turns every warning into an error."""

import sandd

project = "sandd"
author = copyright = "The sandd authors"
version = release = sandd.__version__

extensions = ["sphinx.ext.doctest"]
html_theme = "furo"
html_title = f"sandd {release}"
default_role = "literal"  # `name` reads as code, here as in docstrings
