"""What mkdocs does beside its plugins: pages that lie outside of docs/, and formulas without a script."""

import html
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files

OUTSIDE = (
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/EMBEDDED.md",
    "benchmarks/results/every-model.md",
)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that lie elsewhere, under their own paths."""
    root = Path(config.config_file_path).parent
    for page in OUTSIDE:
        files.append(File.generated(config, page, abs_src_path=str(root / page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links go from the sources' folders, as a reader of the repository has them, to those of the site."""
    if page.file.src_uri in OUTSIDE:
        return re.sub(r"\]\((?:docs|\.\./docs)/", "](", markdown)
    return markdown.replace("](../", "](")


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show by themselves."""
    pattern = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(pattern, _formula, content, flags=re.DOTALL)


def _formula(match: re.Match[str]) -> str:
    tag, formula = match.groups()
    display = "inline" if tag == "span" else "block"
    made = latex2mathml.converter.convert(html.unescape(formula).strip(), display=display)
    return f'<{tag} class="arithmatex">{made}</{tag}>'
