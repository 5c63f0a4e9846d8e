"""Sphinx configuration."""

from importlib.metadata import version as installed_version

project = "bayesprune"
author = "The bayesprune developers"
copyright = author
release = version = installed_version("bayesprune")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types, with shapes and units
napoleon_google_docstring = False
napoleon_use_rtype = False

myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"  # notebooks are shown as stored; CI runs them

html_theme = "furo"
html_title = f"bayesprune {release}"
