"""A matplotlib figure as SVG for the inside of an HTML page, in the page's own colour and font."""

import io
import re

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

INK = "#000000"  # what is black in a figure takes the colour of the text around it, in dark mode too
# Date and version of matplotlib, and a rule for the whole page.
UNWANTED = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """An `<svg>` element with a text alternative, transparent, without external references.

    `name` starts all ids in it, so that those of several figures on one page don't clash. The same figure gives the
    same text each time.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    content = UNWANTED.sub("", buffer.getvalue()).replace(INK, "currentColor")
    content = content.replace(' id="', f' id="{name}-').replace("url(#", f"url(#{name}-")
    content = content.replace(' xlink:href="#', f' href="#{name}-')
    width, height = 72 * figure.get_size_inches()  # points, as matplotlib counts
    head = Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">')
    body = content[content.index(">", content.index("<svg")) + 1 :]
    return head.format(name, width, height, description) + Markup(body.strip())  # noqa: S704, matplotlib's own
