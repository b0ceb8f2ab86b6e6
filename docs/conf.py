"""The documentation site: `sphinx-build -W docs docs/_build` (`pip install '.[docs]'`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.shell import BashLexer
from sphinx.application import Sphinx

import promptforge

sys.path.insert(0, str(Path(__file__).parent))
import reference_pages

project = "PromptForge"
version = release = promptforge.__version__
copyright = "the PromptForge authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
#: In docstrings `name` is code.
default_role = "code"

autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_preprocess_types = False

smartquotes = False  # -- begins an option

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "PromptForge"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
linkcheck_anchors = False


def named_files(app: Sphinx, docname: str, source: list[str]) -> None:
    """A fence after `<!-- file: PATH -->` has the path above it; the other comments are the tests'."""
    text = re.sub(
        r"(?m)^<!-- file: (.+?) -->\n(`{3,})(\w+)\n",
        lambda m: f"{m[2]}{{code-block}} {m[3]}\n:caption: {m[1]}\n\n",
        source[0],
    )
    source[0] = re.sub(r"(?m)^<!-- not run: .*? -->\n", "", text)


def plain_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text: an indented block is literal, and no character is markup."""
    out: list[str] = []
    for i, line in enumerate(lines):
        indented = line.startswith("    ") and (not i or not lines[i - 1].strip())
        begins = indented and out and not _section(out)
        if begins:
            out += ["::", ""]
        out.append(line if line.startswith("    ") else re.sub(r"(?<!`)([*|])(?!`)", r"\\\1", line))
    lines[:] = out


def _section(out: list[str]) -> bool:
    """Whether the lines so far end in a heading such as "Args:"."""
    last = next((line for line in reversed(out) if line.strip()), "")
    return bool(re.match(r"\w+:$", last)) or last.startswith("    ")


def skipped(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """What scikit-learn and pydantic give to a class is theirs to document."""
    return True if re.fullmatch(r"set_\w+_request|model_\w+", name) else None


def mathml(translator: Any, node: Any) -> None:
    """A formula as MathML, which browsers draw by themselves: no page loads a script from elsewhere."""
    formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    translator.body.append(formula)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.add_lexer("console", BashLexer)  # commands without a prompt before them
    reference_pages.write(Path(app.srcdir) / "reference")
    app.connect("source-read", named_files)
    app.connect("autodoc-skip-member", skipped)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
