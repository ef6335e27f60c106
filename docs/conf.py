"""Configuration of the documentation; ``sphinx-build -W docs build/docs`` makes it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import inventories
import notebooks

import probgen

project = "probgen"
author = "The probgen developers"
copyright = "the probgen developers"
version = release = probgen.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "reference",  # _ext: pages of the API, one for each namespace
    "families",  # _ext: the table of what each family can do
    "notebooks",  # _ext: the tutorials
    "gallery",  # _ext: small pictures with their code
    "inventories",  # _ext: links to other libraries
    "sources",  # _ext: links to the lines that define a name
]
exclude_patterns = ["_ext", "_templates", "_generated", "gallery", "README.md"]
nitpicky = False

source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
# tests run every snippet and tutorial: tutorials are run here only where their pictures are wanted
nb_execution_mode = "cache" if notebooks.RUN else "off"
nb_execution_cache_path = str(notebooks.CACHE)
nb_execution_in_temp = True  # they leave files where they run
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings give shapes as well
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = True  # types of parameters are links
numpydoc_xref_aliases = inventories.aliases()
numpydoc_xref_ignore = "all"
intersphinx_mapping = inventories.MAPPING
intersphinx_cache_limit = 0  # they are written anew

templates_path = ["_templates"]
html_theme = "pydata_sphinx_theme"
html_title = "probgen"
html_static_path = ["_static"]
html_css_files = ["probgen.css"]
html_show_sourcelink = False
html_sidebars = {"families": [], "gallery": [], "getting_started": []}  # they have no sections
html_theme_options = {
    "show_toc_level": 2,
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
