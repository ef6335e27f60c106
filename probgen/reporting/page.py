"""A page of HTML that needs nothing beside itself: text escaped, pictures inside."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

DPI = 130
# of the width of a page; what is wider keeps its letters readable and is moved sideways
NARROWEST = 560

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1c2330; background: #f6f7f9; overflow-wrap: break-word; }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; padding-bottom: 8px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
header p, footer { color: #5a6472; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 10px; font-size: 0.95rem; }
a { color: #0060a0; text-decoration: none; }
a:hover { text-decoration: underline; }
section { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 16px 20px;
  margin: 16px 0; }
h2 { font-size: 1.2rem; margin: 0 0 10px; }
p { margin: 8px 0; }
p.note { color: #5a6472; }
p.number { font-size: 1.35rem; margin: 4px 0 8px; font-variant-numeric: tabular-nums; }
p.good, p.caution, p.bad { display: inline-block; padding: 2px 12px; border-radius: 999px; font-weight: 600; }
p.good { background: #e2f3ea; color: #0b5d3b; }
p.caution { background: #fdf3d6; color: #6b4a00; }
p.bad { background: #fbe6da; color: #8c3800; }
ul { margin: 8px 0; padding-left: 0; list-style: none; }
li { padding: 4px 10px; border-left: 4px solid #cfd6de; margin: 6px 0; }
li.fault { border-color: #d55e00; background: #fdf4ee; }
li.caution { border-color: #e69f00; background: #fdf9ee; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid #e9ecf0;
  vertical-align: top; }
thead th { color: #5a6472; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
td.figure, thead th.figure { text-align: right; white-space: nowrap; }
figure { margin: 12px 0; }
figcaption { color: #5a6472; font-size: 0.9rem; }
img { display: block; height: auto; max-width: 100%; }
.side { display: flex; flex-wrap: wrap; gap: 8px 24px; }
.side figure { flex: 1 1 300px; min-width: 0; }
pre { overflow-x: auto; background: #f6f7f9; padding: 12px; border-radius: 6px; font-size: 0.82rem;
  line-height: 1.35; }
summary { cursor: pointer; color: #0060a0; }
footer { padding-bottom: 28px; font-size: 0.9rem; }
@media (max-width: 600px) {
  header, main, footer { padding-left: 10px; padding-right: 10px; }
  section { padding: 12px; }
}
@media print { section { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of a page: its title, and its content as HTML."""

    title: str
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """By which it is linked.

        >>> Section("Held-out score", ()).name
        'held-out-score'
        """
        return self.title.lower().replace(" ", "-")


def page(title: str, subtitle: str, sections: Sequence[Section], foot: str) -> str:
    """The whole page.

    >>> "<h1>a &lt; b</h1>" in page("a < b", "", [Section("One", (paragraph("x"),))], "")
    True
    """
    links = " ".join(f'<a href="#{each.name}">{escape(each.title)}</a>' for each in sections)
    body = "\n".join(
        f'<section id="{each.name}">\n<h2>{escape(each.title)}</h2>\n'
        + "\n".join(each.parts)
        + "\n</section>"
        for each in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(subtitle)}</p>\n"
        f"<nav>{links}</nav>\n</header>\n"
        f"<main>\n{body}\n</main>\n<footer>{escape(foot)}</footer>\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, of a kind that the style knows: ``note``, ``number``, ``good``, ``bad``.

    >>> paragraph("k < 0.7", "note")
    '<p class="note">k &lt; 0.7</p>'
    """
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def points(items: Iterable[tuple[str, str]]) -> str:
    """A list of sentences, each with its kind.

    >>> points([("fault", "a"), ("", "b")])
    '<ul><li class="fault">a</li><li>b</li></ul>'
    """
    shown = (
        f'<li class="{kind}">{escape(text)}</li>' if kind else f"<li>{escape(text)}</li>"
        for kind, text in items
    )
    return f"<ul>{''.join(shown)}</ul>"


def cell_table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Rows of cells, of which the first is the name of its row; numbers stand at the right.

    >>> cell_table([("loss", 3.0)])
    '<div class="wide"><table><tbody><tr><th>loss</th><td class="figure">3</td></tr></tbody></table></div>'
    """
    lines = list(rows)
    body = "".join(
        f"<tr><th>{escape(str(name))}</th>{''.join(map(_cell, cells))}</tr>"
        for name, *cells in lines
    )
    right = [isinstance(cell, float) for cell in lines[0]] if lines else []
    top = "".join(
        f'<th class="figure">{escape(word)}</th>' if number else f"<th>{escape(word)}</th>"
        for word, number in zip(head, right, strict=False)
    )
    above = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{above}<tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, float):
        text = "" if math.isnan(value) else f"{value:.4g}"
        return f'<td class="figure">{escape(text)}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="figure">{value:,}</td>'
    return f"<td>{escape('' if value is None else str(value))}</td>"


def folded(title: str, text: str) -> str:
    """Long text that is shown when its title is clicked.

    >>> folded("model", "a")
    '<details><summary>model</summary><pre>a</pre></details>'
    """
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def picture(figure: Any, caption: str = "", small: bool = False) -> str:
    """A Matplotlib figure, which is closed, as a picture inside the page.

    On a narrow page it keeps a width at which its letters can be read, unless it is ``small``.
    """
    import matplotlib.pyplot as plt

    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    data = written.getvalue()
    wide = round(int.from_bytes(data[16:20], "big") * 96 / DPI)  # as PNG files begin
    least = "" if small else f' style="min-width: {min(wide, NARROWEST)}px"'
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    source = base64.b64encode(data).decode()
    return (
        f'<figure><div class="wide"><img alt="{escape(caption, quote=True)}" width="{wide}"{least} '
        f'src="data:image/png;base64,{source}"></div>{told}</figure>'
    )


def in_a_row(*pictures: str) -> str:
    """Pictures beside each other where there is room.

    >>> in_a_row("a", "b")
    '<div class="side">ab</div>'
    """
    return f'<div class="side">{"".join(pictures)}</div>'
