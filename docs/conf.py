"Sphinx's configuration of the site. tools/docs.py lays out the sources (_docs/) and calls Sphinx; no page asks another host for anything."
import json
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes

project, html_title, copyright = "abs_lab", "abs_lab", "the abs_lab developers"
extensions = ["myst_nb"]
exclude_patterns = ["_extra"]
html_theme, html_extra_path, html_static_path, html_css_files = "furo", ["_extra"], ["_static"], ["site.css"]
html_favicon = "favicon.ico"
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = dict(light_css_variables={"font-stack--monospace": "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"}, navigation_with_keys=True)
add_module_names = toc_object_entries = False
smartquotes_action = "qe"  # no dashes: --scale stays a flag
nb_execution_mode, nb_ipywidgets_js = "off", {}       # a page shows what its notebook holds; no script of widgets from elsewhere
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions, myst_heading_anchors = ["dollarmath", "amsmath", "colon_fence"], 4
myst_url_schemes = dict(https=None, mailto=None, extra=dict(url="{{path}}#{{fragment}}"))  # extra: a file of the site that is no page
suppress_warnings = ["myst.header", "misc.highlighting_failure", "mystnb.unknown_mime_type", "mystnb.mime_priority"]
html_math_renderer = "mathml"

NAMES = json.loads((Path(__file__).parent/"_names.json").read_text())  # a public name → its full name


def _math(display):
    def visit(self, node):
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode
    return visit, None


def _link_names(app, tree):
    "Names of the library in running text lead to their entry in the API."
    for literal in list(tree.findall(nodes.literal)):
        name = re.sub(r"\(.*\)$", "", literal.astext()).removeprefix("abs_lab.")
        if name not in NAMES or isinstance(literal.parent, (nodes.reference, addnodes.pending_xref)) or any(isinstance(p, (nodes.title, addnodes.desc_signature)) or isinstance(p, nodes.entry) and p.parent[0] is p for p in _above(literal)): continue  # a row's first cell names what the row is about
        target = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=NAMES[name], refexplicit=True, refwarn=True)
        literal.replace_self(target)
        target += literal


def _above(node):
    while node := node.parent: yield node


def _tidy_links(app, tree, page):
    "The template of the scheme `extra` always writes a #."
    for link in tree.findall(nodes.reference):
        if link.get("refuri", "").endswith("#"): link["refuri"] = link["refuri"][:-1]


def setup(app):
    app.add_html_math_renderer("mathml", _math("inline"), _math("block"))
    app.connect("doctree-read", _link_names)
    app.connect("doctree-resolved", _tidy_links)
