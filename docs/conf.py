"""Sphinx settings: pages in Markdown, reference from docstrings, commands and cards generated."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import generated

from cdal_engine import __version__

generated.write(Path(__file__).parent / "_generated")

project = "napari-cdal"
author = "napari-cdal contributors"
copyright = f"2026, {author}"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"

myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # the README links to files of the repository
napoleon_google_docstring = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
