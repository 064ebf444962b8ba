"""From a row of a known data set to a case. A new format is one function and one line in `FORMATS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..edits import Case, Edit, Probe
from ..text.chat import Prompt, as_prompt, is_chat
from .rows import Columns

__all__ = ["COLUMNS", "FORMATS", "Record", "alternative", "detect", "parse"]

_ANSWERS = ("answers", "ans")
_REPHRASES = ("rephrases", "rephrase", "rephrase_prompt")
_TRUTHS = ("target_true", "target_true_all", "ground_truth")
_PROBES = ("locality", "same_subject", "portability")
_LISTS = frozenset((*_ANSWERS, *_REPHRASES, *_TRUTHS, *_PROBES, "loc_ans"))
_NEEDED = (("prompt", "src"), ("target", "target_new", "alt", *_ANSWERS))
_SINGLE = ("subject", "loc", "locality_prompt", "locality_target", "locality_ground_truth")

COLUMNS = Columns({*_LISTS, *_SINGLE, *_NEEDED[0], *_NEEDED[1]}, _LISTS, _NEEDED)
"""The columns of a table of edits: fields of all the formats that a table can hold."""


class Record(NamedTuple):
    """A case with what its data set knows beside it.

    Attributes:
        case: the edit and its probes.
        true_targets: the answers before the edit; empty where the data set gives none.
        empty_probes: probes that were left out because their prompt or answer is empty.
    """

    case: Case
    true_targets: tuple[str, ...]
    empty_probes: int


class _Fields:
    """Reads the fields of one row; every complaint names the field."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values = values
        self.prefix = prefix
        self.empty = 0

    def text(self, *names: str, optional: bool = False) -> str:
        """The first of the fields that is there, blanks at both ends taken off; "" if it may be absent."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str):
                raise ValueError(f"{self.prefix}{name} must be text, got {type(value).__name__}")
            if value.strip():
                return value.strip()
            if not optional:
                raise ValueError(f"{self.prefix}{name} is empty")
        if optional:
            return ""
        raise ValueError(f"no field {' or '.join(repr(self.prefix + name) for name in names)}")

    def prompt(self, name: str, optional: bool = False) -> Prompt:
        """A field that may also hold messages, a list of {role, content}."""
        value = self.values.get(name)
        return self._messages(name, value) if is_chat(value) else self.text(name, optional=optional)

    def prompts(self, *names: str) -> tuple[Prompt, ...]:
        """As `texts`, of which each may also be messages."""
        found: list[Prompt] = []
        for name in names:
            value = self.values.get(name)
            several = isinstance(value, list | tuple) and not is_chat(value)
            for item in value if several else [value]:  # type: ignore[union-attr]
                if is_chat(item):
                    found.append(self._messages(name, item))
                else:
                    found += _Fields({name: item}, self.prefix).texts(name)
        return tuple(found)

    def _messages(self, name: str, value: Any) -> Prompt:
        try:
            return as_prompt(value)
        except ValueError as error:
            raise ValueError(f"{self.prefix}{name}: {error}") from error

    def texts(self, *names: str) -> tuple[str, ...]:
        """A text or a list of texts; empty ones are left out, and so is an absent field."""
        found: list[str] = []
        for name in names:
            value = self.values.get(name)
            for item in value if isinstance(value, list | tuple) else [value]:
                if item is not None and not isinstance(item, str):
                    raise ValueError(f"{self.prefix}{name} must hold texts, got {type(item).__name__}")
                if item and item.strip():
                    found.append(item.strip())
        return tuple(found)

    def probes(self, name: str) -> tuple[Probe, ...]:
        """A list of objects with prompt and target."""
        value = self.values.get(name) or []
        if not isinstance(value, list | tuple):
            raise ValueError(
                f"{self.prefix}{name} must be a list of {{prompt, target}}, got {type(value).__name__}"
            )
        found: list[Probe] = []
        for item in value:
            if not isinstance(item, Mapping):
                raise ValueError(
                    f"{self.prefix}{name} must hold {{prompt, target}}, got {type(item).__name__}"
                )
            inner = _Fields(item, f"{self.prefix}{name}.")
            found += self.probe(inner.prompt("prompt", optional=True), inner.text("target", optional=True))
        return tuple(found)

    def probe(self, prompt: Prompt, target: str) -> tuple[Probe, ...]:
        """One probe, or none (and counted) if one of its texts is empty."""
        if prompt and target:
            return (Probe(prompt, target),)
        self.empty += 1
        return ()


def plain(values: Mapping[str, Any]) -> Record:
    """memplug's own rows, flat ones from a table, and SelfCheckGPT edits as WISE and LLP use them.

    Every prompt may also be messages, a list of {role, content} that ends with the user's question.

    Fields: prompt; target (or target_new); subject, found in the prompt if it is not given;
    target_true; rephrases (or rephrase, rephrase_prompt); locality, same_subject and portability as
    lists of {prompt, target}; or one locality_prompt with its locality_target (locality_ground_truth).
    """
    row = _Fields(values)
    locality = row.probes("locality")
    if row.text("locality_prompt", optional=True):
        answer = row.text("locality_target", "locality_ground_truth", optional=True)
        locality += row.probe(row.text("locality_prompt"), answer)
    case = Case(
        _edit(row.prompt("prompt"), row.text("target", "target_new"), row.text("subject", optional=True)),
        rephrases=row.prompts(*_REPHRASES),
        locality=locality,
        same_subject=row.probes("same_subject"),
        portability=row.probes("portability"),
    )
    return Record(case, row.texts(*_TRUTHS), row.empty)


def zsre(values: Mapping[str, Any]) -> Record:
    """ZsRE as MEND, MALMEN, RLEdit and LLP ship it: src, subject, rephrase, alt, answers, loc, loc_ans.

    The edit's target is ``alt``; ``answers`` are then the true ones. Where there is no ``alt`` the right
    answer itself is edited in (``answers`` or ``ans``); see also `alternative`. The locality question loses
    its "nq question: " and gets its question mark, as in all of these works.
    """
    row = _Fields(values)
    prompt = row.text("src", "prompt")
    answers = row.texts(*_ANSWERS)
    target = row.text("alt", optional=True)
    if not target and not answers:
        raise ValueError("no field 'alt' or 'answers'")
    question = re.sub(r"^nq question:\s*", "", row.text("loc", optional=True))
    answer = (*row.texts("loc_ans"), "")[0]
    locality = row.probe(_asked(question), answer) if question else ()
    case = Case(
        _edit(prompt, target or answers[0], row.text("subject", optional=True)),
        rephrases=row.texts("rephrase", "rephrase_prompt"),
        locality=locality,
    )
    return Record(case, answers if target else (), row.empty)


def counterfact(values: Mapping[str, Any]) -> Record:
    """CounterFact as ROME and MEMIT ship it: requested_rewrite, paraphrase_prompts, neighborhood_prompts.

    Neighbourhood prompts are about other subjects with the same true answer, so that answer is their
    target. Attribute and generation prompts have no single answer and are not read.
    """
    row = _Fields(values)
    rewrite = values.get("requested_rewrite")
    if not isinstance(rewrite, Mapping):
        raise ValueError("no field 'requested_rewrite' that holds an object")
    inner = _Fields(rewrite, "requested_rewrite.")
    subject, template = inner.text("subject"), inner.text("prompt")
    if "{}" not in template:
        raise ValueError(f"requested_rewrite.prompt has no {{}} for the subject: {template!r}")
    new, true = (_named(rewrite, name) for name in ("target_new", "target_true"))
    if not new:
        raise ValueError("no field 'requested_rewrite.target_new.str'")
    neighbours = row.texts("neighborhood_prompts")
    case = Case(
        Edit(template.replace("{}", subject), new, subject),
        rephrases=row.texts("paraphrase_prompts"),
        locality=tuple(probe for prompt in neighbours for probe in row.probe(prompt, true)),
    )
    return Record(case, (true,) if true else (), row.empty)


FORMATS: dict[str, Callable[[Mapping[str, Any]], Record]] = {
    "zsre": zsre,
    "counterfact": counterfact,
    "selfcheckgpt": plain,
    "plain": plain,
}


def detect(values: Mapping[str, Any]) -> str:
    """The format whose own fields a row has."""
    if "requested_rewrite" in values:
        return "counterfact"
    return "zsre" if "src" in values else "plain"


def alternative(values: Mapping[str, Any], format: str | None = None) -> str | None:
    """The ``alt`` of a ZsRE row, "" if it has none; None for rows of other formats.

    A row without is edited to its true answer, which is meant only where no row of the file has one.
    """
    if _format(values, format) != "zsre":
        return None
    return "" if values.get("alt") is None else str(values["alt"]).strip()


def parse(values: Mapping[str, Any], format: str | None = None) -> Record:
    """The case in one row.

    Args:
        values: the row's fields.
        format: a name in `FORMATS`; None tells it by the fields, as do rows in memplug's own form.

    Raises:
        ValueError: a field is missing, empty or of the wrong type, or the edit cannot be made.
    """
    return FORMATS[_format(values, format)](values)


def _format(values: Mapping[str, Any], format: str | None) -> str:
    if format is not None and detect(values) == "plain" and {"target", "target_new"} & values.keys():
        return "plain"  # one of the known sets, rewritten as memplug's own rows
    return format or detect(values)


def _edit(prompt: Prompt, target: str, subject: str) -> Edit:
    """The edit, with its subject found in the question where none is given."""
    return Edit(prompt, target, subject or None).with_subject()


def _named(rewrite: Mapping[str, Any], name: str) -> str:
    """The text of a CounterFact target, which is an object with a text and an identifier."""
    value = rewrite.get(name)
    if isinstance(value, Mapping):
        return _Fields(value, f"requested_rewrite.{name}.").text("str")
    return _Fields(rewrite, "requested_rewrite.").text(name, optional=True)


def _asked(question: str) -> str:
    return question if not question or question[-1] in ".?!" else f"{question}?"
