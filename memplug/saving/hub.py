"""Saved plugs in a repository of the Hugging Face Hub: the folder's files, and a card made of the edits.

What comes from there is data like any other save: it is checked before it is used, and nothing in it is run.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text.chat import show
from ..text.printable import printable
from .files import LoadError, SaveError
from .manifest import MANIFEST

if TYPE_CHECKING:
    from ..plugin import Plug

__all__ = ["card", "fetched", "is_repository", "push"]

_FILES = [MANIFEST, "tensors-*.safetensors"]
_SHOWN = 100  # edits that a card lists
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


def is_repository(name: str) -> bool:
    """Whether this is a repository's id ("user/facts", "user/facts@revision") and no folder that is there."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def card(plug: Plug, repository: str) -> str:
    """The README.md of a repository: what the plug is for, how it is loaded, and its edits."""
    base = str(getattr(plug.model.config, "_name_or_path", "") or "")
    named = f"base_model: {base}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else ""
    rows = [
        f"| {_cell(show(edit.prompt))} | {_cell(edit.target)} | {_cell(edit.subject or '')} | "
        f"{'on' if plug.edits.enabled(id) else 'off'} |"
        for id, edit in list(plug.edits.items())[:_SHOWN]
    ]
    more = len(plug.edits) - len(rows)
    return (
        f"---\nlibrary_name: memplug\ntags: [memplug, model-editing]\n{named}---\n\n"
        f"# {len(plug.edits)} edits of {_cell(type(plug.model).__name__)} {_cell(base)}\n\n"
        f"Edited facts for a language model, made by the method `{plug.name}` of memplug. They are for the "
        "very weights and dtype that they were made on; another model is refused.\n\n"
        f'```python\nimport memplug\n\nplug = memplug.load("{repository}", model, tokenizer)\n```\n\n'
        "| prompt | answer from now on | subject | |\n| --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + (f"\n\nand {more} more.\n" if more else "\n")
    )


def push(plug: Plug, repository: str, private: bool | None, token: str | None, message: str | None) -> str:
    """Save ``plug`` into a repository, which is made where it is not there; gives back the commit's URL.

    Raises:
        SaveError: the Hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # What its HTTP library raises where nothing answers, whichever library that is.
    unreachable: Any = next(one for one in HfHubHTTPError.__mro__ if one.__name__ == "HTTPError")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plug.save(folder)
        (folder / "README.md").write_text(card(plug, repository), encoding="utf-8")
        try:
            api = HfApi(token=token)
            api.create_repo(repository, private=private, exist_ok=True)
            made = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                allow_patterns=[*_FILES, "README.md"],
                delete_patterns=_FILES[1],
                commit_message=message or f"{len(plug.edits)} edits, {plug.name}",
            )
        except (unreachable, HFValidationError, OSError) as error:
            raise SaveError(f"{repository} could not be written ({_reason(error)})") from error
    return str(made.commit_url)


@contextmanager
def fetched(repository: str, token: str | None = None) -> Iterator[Path]:
    """A folder with the save that a repository holds, inside the ``with``.

    Args:
        repository: "user/facts", or "user/facts@revision" with a branch, a tag or a commit.
        token: for a private one; None is the one that `hf auth login` left.

    Raises:
        LoadError: there is no such repository, it holds no saved plug, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    id, _, revision = repository.partition("@")
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {"revision": revision or None, "token": token, "local_dir": folder}
        try:
            snapshot_download(id, allow_patterns=_FILES, **given)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise LoadError(
                f"{printable(repository)} is no folder here, and could not be had from the Hub "
                f"({_reason(error)}); see the name, or give the folder that save() wrote"
            ) from error
        yield Path(folder)


def _cell(text: str) -> str:
    """A text inside a table of Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(printable(text).split()))


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:300] or type(error).__name__)
