"""The documentation site: `python -m sphinx -W docs docs/_build`. Pages are Markdown (MyST), the reference is from the code."""

from __future__ import annotations

import json
import re
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from inspect import isclass
from io import StringIO
from pathlib import Path

from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "Unmask"
author = "Unmask authors"
html_title = "Unmask"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "results/**/*.txt"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4  # links to headings have the form that code hosts use: page.md#the-heading
default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Args and the source state types and shapes; jaxtyping's classes are long when printed
napoleon_numpy_docstring = False
suppress_warnings = ["myst.header"]  # a page may begin its subsections at any level


MEMBERS = {"autoclass": "   :members:\n", "autofunction": ""}


class Commands(SphinxDirective):
    """A section for each command of `python -m unmask`, with the text of its `--help`."""

    def run(self) -> list[Node]:
        text = "\n".join(section(name, about) for name, about in import_module("unmask.__main__").COMMANDS.items())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class Package(SphinxDirective):
    """The public names of a package, with their docstrings. They are imported when they are used, so automodule finds none."""

    required_arguments = 1

    def run(self) -> list[Node]:
        package = import_module(self.arguments[0])
        kinds = {name: "autoclass" if isclass(getattr(package, name)) else "autofunction" for name in package.__all__}
        names = sorted(kinds, key=lambda name: (kinds[name] == "autoclass", name.lower()))
        directives = [f".. {kinds[name]}:: {package.__name__}.{name}\n{MEMBERS[kinds[name]]}" for name in names]
        return self.parse_text_to_nodes("```{eval-rst}\n" + "\n".join(directives) + "\n```")


class Notebook(SphinxDirective):
    """The cells of a notebook: prose and Python, without outputs and without the title, which the page has already."""

    required_arguments = 1

    def run(self) -> list[Node]:
        path = Path(self.env.srcdir) / self.arguments[0]
        self.env.note_dependency(str(path))
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join(map(markdown, cells))
        return self.parse_text_to_nodes(re.sub(r"\A# .*\n", "", text), allow_section_headings=True)


def section(name: str, about: str) -> str:
    """The section of one command in Markdown."""
    printed = StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        import_module("unmask.__main__").command(name).main(["--help"])
    return f"## {name}\n\n{about[0].upper()}{about[1:]}.\n\n````text\n{printed.getvalue().strip()}\n````\n"


def markdown(cell: dict) -> str:
    """One cell of a notebook in Markdown."""
    source = "".join(cell["source"])
    return source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"


def setup(app: Sphinx) -> None:
    """Register the directives of this file."""
    app.add_directive("commands", Commands)
    app.add_directive("notebook", Notebook)
    app.add_directive("package", Package)
