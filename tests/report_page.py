"""What stands on a report's page, read back from its HTML."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "input", "br", "wbr", "hr", "link", "img"}


class Page(HTMLParser):
    """Tables by caption as {method: [cell, ...]}, all start tags, and the text of scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.tables, self.scripts, self.open, self.text = [], {}, [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self.caption = ""
        elif tag == "tr":
            self.row = []
        elif tag in ("td", "th"):
            self.row.append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "tr" and "tbody" in self.open and hasattr(self, "caption"):
            self.tables.setdefault(self.caption.strip(), {})[" ".join(self.row[0].split())] = self.row[1:]
        elif tag == "table":
            self.__dict__.pop("caption", None)

    def handle_data(self, data):
        self.text += data
        if "script" in self.open:
            self.scripts[-1] += data
        elif "caption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.row[-1] += data
