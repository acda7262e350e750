"""The site of these pages: `make docs` builds it with Sphinx, offline, and takes every warning for an error.

Pages are the Markdown files of this folder. Those in ``tutorials`` are notebooks: they are executed, on a small generated
world that the first of them makes, and kept until the code, the locked packages or their own cells change.
"""

import hashlib
import os
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).resolve().parent
PROJECT = DOCS.parent
WORK = PROJECT / "dist" / "tutorials"


def _code_digest() -> str:
    """What executed pages depend on besides their own cells."""
    digest = hashlib.sha256()
    for path in [
        *sorted((PROJECT / "geokr_core").rglob("*")),
        PROJECT / "uv.lock",
        DOCS / "tutorials" / "tutorial.yaml",
    ]:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(PROJECT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


project = "GeoKR"
author = "The GeoKR authors"
project_copyright = "the GeoKR authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["**.ipynb_checkpoints"]

# Markdown
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# Executed pages
WORK.mkdir(parents=True, exist_ok=True)
os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{WORK / 'mlflow.db'}")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, which looks for widgets in every notebook
nb_execution_mode = "cache"
nb_execution_cache_path = str(WORK / "cache" / _code_digest())
nb_execution_timeout = 240  # seconds a cell, on a busy machine; a page takes less than 60 on a quiet core
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# Reference from docstrings
default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = "GeoKR"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "header_links_before_dropdown": 7,
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")


def _without_links_to_the_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """A link to a file that lies beside `docs` works in the repository; the site shows its words, and checks the file."""
    folder = (DOCS / docname).parent

    def words(found: re.Match[str]) -> str:
        target = (folder / found[2]).resolve()
        if target.is_relative_to(DOCS):
            return found[0]
        if not target.exists():
            logging.getLogger(__name__).warning("%s links to %s, which is not there", docname, found[2])
        return found[1]

    source[0] = _LINK.sub(words, source[0])


def setup(app: Sphinx) -> None:
    """Register what is done to each page before it is parsed."""
    app.connect("source-read", _without_links_to_the_repository)
