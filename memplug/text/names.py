"""Where a text names a subject, and in which ways a subject is written.

Names are compared as people write them: composed and decomposed Unicode are the same, and so are the kinds of
apostrophe, hyphen and blank. Letter case and a leading article count only where the exact name is not there.
A name stands at word boundaries: Niger is not in Nigeria. What is found is always the text's own letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Place", "Written", "inside", "names", "place_of", "placed", "same_text", "writings"]


class Place(NamedTuple):
    """``text[begin:end]`` is the name."""

    begin: int
    end: int


class Written(NamedTuple):
    """A text that names a subject at ``text[begin:end]``."""

    text: str
    begin: int
    end: int


def same_text(text: str) -> str:
    """What two texts share that differ in composed and decomposed Unicode alone."""
    return unicodedata.normalize("NFC", text)


def place_of(text: str, name: str, start: int = 0) -> Place | None:
    """The first place of a name in a text, from ``start`` on; None where the text does not name it.

    The exact letters count first, then the same in other Unicode, then in another letter case, then without
    the article before or the possessive behind it.
    """
    found = next(_exact(text, name, start), None)
    if found is not None or not name.strip():
        return found
    shorter = [_ARTICLE.sub("", name), _POSSESSIVE.sub("", name)]
    for wanted in dict.fromkeys(one for one in (name, *shorter) if one):
        if _squeezed(wanted) not in _squeezed(text):
            continue  # as mostly
        for fold in (_plain, _loose):
            found = _folded(text, wanted, start, fold)
            if found is not None:
                return found
    return None


def placed(text: str, name: str, start: int = 0) -> Place:
    """As `place_of`, of a text that names it.

    Raises:
        ValueError: it does not.
    """
    found = place_of(text, name, start)
    if found is None:
        raise ValueError(f"{name!r} is not named in {text[:60]!r}")
    return found


def names(text: str, name: str) -> bool:
    """Whether a text names it; see `place_of`."""
    return place_of(text, name) is not None


def inside(text: str, name: str) -> str | None:
    """The word of a text that holds a name as a part of it, as Nigeria holds Niger; None where none does."""
    at = _loose(text).find(_loose(name))
    if at < 0 or not name or len(_loose(text)) != len(text):
        return None
    begin, end = at, at + len(_loose(name))
    while begin and _joined(text[begin - 1], text[begin]):
        begin -= 1
    while end < len(text) and _joined(text[end - 1], text[end]):
        end += 1
    return text[begin:end]


def writings(name: str) -> list[Written]:
    """Texts that write a name in the ways that tokens differ by: alone, behind a blank, a mark or a new line,
    in composed and decomposed Unicode, with either apostrophe, and with a capital."""
    forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    forms += [one.translate(table) for one in forms[:2] for table in _APOSTROPHES]
    found = []
    for form in dict.fromkeys((*forms, name[:1].upper() + name[1:])):
        for front in _FRONTS if form == name else ("", "The word "):
            found.append(Written(front + form, len(front), len(front) + len(form)))
    return found


_FRONTS = (
    "",
    "The name ",
    'He said: "',
    "Look (",
    "One line.\n",
    "See:\t",
    "This is **",
    "And -",
    "Now\u00a0",
)
_APOSTROPHES = (str.maketrans("’‘ʼ", "'''"), str.maketrans("'‘ʼ", "’’’"))
_ARTICLE = re.compile(
    r"^(?:(?:the|an?|der|die|das|den|dem|des|les?|la|une?|el|los|las|il|lo|gli|i)\s+|l['’])(?=\w)", re.I
)
_POSSESSIVE = re.compile(r"(?:['’]s|(?<=s)['’])$", re.I)
_ALIKE = str.maketrans(
    {**dict.fromkeys("’‘ʼ＇", "'"), **dict.fromkeys("‐‑–", "-"), **dict.fromkeys("“”„", '"')}
)


def _exact(text: str, name: str, start: int) -> Iterator[Place]:
    at = text.find(name, start) if name else -1
    while at >= 0:
        if _apart(text, at, at + len(name)):
            yield Place(at, at + len(name))
        at = text.find(name, at + 1)


def _plain(piece: str) -> str:
    """Without regard to Unicode's forms and to kinds of apostrophe, hyphen and blank."""
    return re.sub(r"\s", " ", unicodedata.normalize("NFC", piece).translate(_ALIKE))


def _loose(piece: str) -> str:
    """As `_plain`, and without regard to letter case and to compatibility forms (H₂O, ﬁ)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", _plain(piece)).casefold())


@lru_cache(8)
def _squeezed(text: str) -> str:
    return re.sub(" +", " ", _loose(text))


def _folded(text: str, name: str, start: int, fold: Callable[[str], str]) -> Place | None:
    """The first place at which the folded text holds the folded name, from letter to letter."""
    pieces: list[str] = []
    where: list[tuple[int, int]] = []  # of each folded letter, where the letter it comes from begins and ends
    for match in _LETTER.finditer(text, start):
        piece = fold(match.group())
        if piece == " " and pieces[-1:] == [" "]:
            continue
        pieces += piece
        where += [match.span()] * len(piece)
    whole, wanted = "".join(pieces), re.sub(" +", " ", fold(name))
    at = whole.find(wanted) if wanted else -1
    while at >= 0:
        last = at + len(wanted) - 1
        begin, end = where[at][0], where[last][1]
        cut = (at and where[at - 1] == where[at]) or where[last + 1 : last + 2] == [where[last]]
        if not cut and _apart(text, begin, end):
            return Place(begin, end)
        at = whole.find(wanted, at + 1)
    return None


_LETTER = re.compile(
    # A letter with the marks that belong to it. Jamo of Hangul have no class of their own among marks.
    "[\\s\\S][\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u093c\u09bc\u0a3c\u0b3c"
    "\u3099\u309a\u1160-\u11ff\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]*"
)


def _apart(text: str, begin: int, end: int) -> bool:
    """Whether a piece stands between word boundaries."""
    if begin and _joined(text[begin - 1], text[begin]):
        return False
    if end == len(text) or not _joined(text[end - 1], text[end]):
        return True
    # Korean particles follow without a blank; a mark would belong to the last letter.
    return _HANGUL.match(text[end - 1]) is not None and unicodedata.category(text[end])[0] == "L"


def _joined(one: str, two: str) -> bool:
    """Whether two neighbouring letters belong to one word. Scripts without blanks have boundaries everywhere,
    but for Katakana, which writes whole words."""
    if unicodedata.category(two)[0] == "M":
        return True
    if not (_in_word(one) and _in_word(two)):
        return False
    kana = _KATAKANA.match(one), _KATAKANA.match(two)
    return all(kana) if any(kana) else not (_UNSPACED.match(one) or _UNSPACED.match(two))


def _in_word(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN"


_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff]")
_UNSPACED = re.compile(
    "[\u3005-\u3007\u3041-\u309f\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)
_HANGUL = re.compile("[\uac00-\ud7a3\u1100-\u11ff]")
