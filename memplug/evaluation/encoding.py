"""Prompts and probes to rows of token ids, and rows to batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tqdm.auto import tqdm

from ..text.chat import Prompt, question, quoted, show
from ..text.tokens import Pair, Text

__all__ = ["at_least_one", "batches", "encode_pairs", "encode_prompts", "longest", "shorten"]


def encode_prompts(text: Text, prompts: Sequence[Prompt], room: int) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        ValueError: an empty prompt, or one that leaves less than ``room`` tokens of the model's context.
    """
    rows = []
    for index, prompt in enumerate(prompts):
        if not question(prompt).strip():
            raise ValueError(f"prompt {index} is empty ({prompt!r}); give it some text or leave it out")
        rows.append(text.encode(prompt))
        if text.room(rows[-1]) < room:
            raise ValueError(
                f"the prompt {shorten(show(prompt))!r} has {len(rows[-1])} tokens, which leaves no room for "
                f"{room} more in the model's context of {text.max_length}; shorten it or lower max_new_tokens"
            )
        text.check_length(rows[-1], prompt)
    return rows


def encode_pairs(text: Text, pairs: Iterable[tuple[Prompt, str]]) -> list[Pair]:
    """Token ids of prompts with their targets.

    Raises:
        ValueError: an empty prompt or target, or a text that does not fit into the model's context.
    """
    rows = []
    for prompt, target in pairs:
        asked = question(prompt)
        if not asked.strip() or not target.strip():
            what = "prompt" if not asked.strip() else "target"
            raise ValueError(
                f"the {what} of ({quoted(prompt)}, {target!r}) is empty; give it some text or leave it out"
            )
        rows.append(text.pair(prompt, target))
    return rows


def longest(text: Text, targets: Sequence[str]) -> int:
    """Tokens of the longest target behind a blank; 0 where there is none."""
    return max((len(text.encode(f" {target}")) for target in targets), default=0)


def batches(rows: Sequence[Sequence[int]], size: int, what: str, progress: bool) -> Iterator[list[int]]:
    """Indices of the rows, longest first, ``size`` at a time."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with tqdm(total=len(rows), desc=what, disable=not progress) as bar:
        for start in range(0, len(order), size):
            yield order[start : start + size]
            bar.update(len(order[start : start + size]))


def shorten(text: str, width: int = 60) -> str:
    """The text for a message, its end left out where it is long."""
    return text if len(text) <= width else text[: width - 1] + "…"


def at_least_one(**numbers: int) -> None:
    """Raise ValueError for the first of the named numbers that is not a whole number of at least 1."""
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
