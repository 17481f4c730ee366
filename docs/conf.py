"""Sphinx' settings; ``nox -s docs`` builds, and turns every warning into an error."""

import sys
from pathlib import Path

import sandd

sys.path.insert(0, str(Path(__file__).parent))  # for wire_tables

project = "sandd"
author = copyright = "The sandd authors"
version = release = sandd.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "wire_tables"]
html_theme = "furo"
html_title = f"sandd {release}"
default_role = "literal"  # `name` reads as code, here as in docstrings
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"  # nobody builds most of them
napoleon_numpy_docstring = False
