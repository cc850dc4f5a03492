"""Sphinx settings: pages in Markdown, reference from the docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from cdal_engine import __version__

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

# The reference is read without the heavy libraries.
autodoc_mock_imports = ["monai", "numpy", "safetensors", "scipy", "skimage", "torch"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
