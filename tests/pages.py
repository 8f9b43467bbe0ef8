"""Pages of HTML for tests, read by the standard library's own parser."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = ("meta", "img", "br", "link", "input", "hr")


class Page(HTMLParser):
    """What of a page the tests ask for. Raises AssertionError where elements are not nested."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.within: list[str] = []
        self.text = ""
        self.tables: list[dict[str, Any]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.within == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.within.append(tag)
        if tag == "table":
            self.tables.append({"captions": 0, "rows": []})
        elif tag == "caption":
            self.tables[-1]["captions"] += 1
        elif tag == "tr":
            self.tables[-1]["rows"].append([])
        elif tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append((tag, dict(attrs).get("scope")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.within.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.within:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
