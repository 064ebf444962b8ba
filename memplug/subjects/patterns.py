"""What stands around a name that opens a sentence, says what is asked, or may belong to the name.

Each rule here says that the ends of a name are sure, or that they are not and what the name may be instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .capitals import Run, Word
from .languages import LANGUAGES, MONTHS, NATIONS, Language, words

__all__ = ["Named", "Names"]

_OF = words("of de del des di du della dei degli delle van von")
_PARTICLES = words("van von di della")  # within names of people
_ASKING = words(
    """
    is are was were does did has have had could would should est sont était fut a ont ist sind war waren hat
    haben es son era fue ha han è sono
    """
)
_COPULAS = words("is was are were")
_PLACING = words("in on at of for from by with during en à dans au aux nel nella")
_ORDERS = words("name describe explain define translate summarize compare discuss")
_SINCE = words("in since until by before after around en im seit nel dal")
_RANKS = words("king queen prince princess duke duchess emperor sultan earl count bishop")
# Nouns that are asked for and also begin names: Age of Empires, City of God.
_VAGUE = words(
    """
    age name place country city continent state head number symbol religion year main original current
    official length area size height depth date chief captain coach leader meaning mother father brother
    sister son
    """
)
_INSTITUTIONS = words(
    """
    university bank republic kingdom house museum battle treaty tower statue bay gulf isle church college
    institute academy school cathedral temple palace castle district lord
    """
)
# German names that end like a genitive.
_FIRST = words(
    "thomas hans johannes klaus jonas lukas markus andreas matthias tobias niklas james charles des das"
)
_WHO = words("who wer welcher welche qui quién quiénes chi")
# Verbs that nothing is done to.
_STATES = words(
    """
    geboren gestorben né née mort morte trouve trouver situé parle nació nacido nacida murió encuentra
    ubicado ubicada habla llama queda nato nata morto morta trova parla родился родилась умер умерла жил
    жила
    """
)


@dataclass
class Named:
    """A run, less what opens the sentence or says what is asked.

    Attributes:
        begin, end: where it stands.
        run: its words.
        opening: it is one word that opens a sentence, which may be any.
        weak: it is hardly what a prompt is about.
        doubt: it may be less or more than the subject.
        others: what it may be instead.
    """

    begin: int
    end: int
    run: Run
    opening: bool = False
    weak: bool = False
    doubt: bool = False
    others: list[str] = field(default_factory=list)


class Names:
    """The names of one prompt, run by run.

    Args:
        prompt, words: the prompt and its words.
        language: its language; None where it is not known.
    """

    def __init__(self, prompt: str, words: list[Word], language: Language | None) -> None:
        self.prompt, self.words, self.language = prompt, words, language
        self.like = language or LANGUAGES[0]  # whose small words are taken where none is known

    def of(self, run: Run) -> Named | None:
        """The run as a name; None where it is none."""
        one = Named(run.begin, run.end, run)
        first = self._opener(one)
        if first == run.last:
            return None
        mine = self.words[first : run.last]
        lower = [word.lower for word in mine]
        if (lower == ["i"] and self.like.name == "en") or all(w in MONTHS or w.isdigit() for w in lower):
            return None
        one.weak = all(word.lower in NATIONS or word.among(self.like.no_names) for word in mine)
        one.opening = len(mine) == 1 and mine[0].opens
        if one.weak:
            one.doubt = one.doubt or (len(mine) == 1 and self.makes(run.first))
            return one
        if self.language is None:  # whatever the words mean
            one.others += [word.text for word in mine[1:] if word.is_name]
            one.others += [re.split("['’]", word.text)[0] for word in mine]
        self._head(one, first, mine)
        self._before(one, first, mine)
        self._inside(one, first, mine)
        self._behind(one)
        return one

    def makes(self, i: int) -> bool:
        """Whether the word ``i`` stands behind one that says that a title follows."""
        return i > 0 and not self.words[i - 1].behind and self.words[i - 1].among(self.like.makers)

    def _opener(self, one: Named) -> int:
        """The first word of the name: the one behind a word that opens the sentence without being a name."""
        run, said, like = one.run, self.words, self.like
        opener = said[run.first]
        if not opener.opens or self.language is None or not opener.among(like.no_names):
            return run.first
        rest = range(run.first + 1, run.last)
        first = next((i for i in rest if said[i].is_name), run.last)
        if first < run.last:
            one.begin = said[first].begin + (said[first].elided if like.bounded else 0)
            # Only titles give capitals to small words.
            titled = said[first].among((like.grammar | like.weak) - like.articles)
            if titled or not self._opens(opener, run, first == run.first + 1):
                one.doubt = True
                one.others.append(self.prompt[run.begin : run.end])
                one.begin = run.begin if titled else one.begin
        return first

    def _opens(self, opener: Word, run: Run, beside: bool) -> bool:
        """Whether a word opens the sentence and is no part of the name, right ``beside`` it or not."""
        word, like = opener.lower, self.like
        if word in like.articles:  # "The Hobbit is"; but La Paz
            return not (like.bounded and beside)
        if word in like.nouns:  # "Capital of France"; but Capital One
            return like.nouns_capital or not (beside or word in _VAGUE)
        asks = any("?" in w.behind or "?" in w.text for w in self.words[run.last - 1 :])
        if word in _ASKING or (word in like.grammar and like.name != "en" and word not in _PLACING):
            return asks
        if word in _PLACING:
            return self.words[run.last - 1].behind.startswith(",") or like.nouns_capital
        return word in _ORDERS

    def _head(self, one: Named, first: int, mine: list[Word]) -> None:
        """What is asked for before the name: "CEO of Apple", "President of France"."""
        cut = next((i for i, word in enumerate(mine) if word.text in _OF), 0)
        rest = next((word for word in mine[cut + 1 :] if word.is_name), None) if cut else None
        if rest is None:
            return
        head, like = mine[:cut], self.like
        before = self.words[first - 1] if first and not mine[0].opens else None
        behind_small = before is None or (
            before.text.islower() and before.among(like.articles | like.grammar)
        )
        asked = all(word.among(like.nouns) for word in head)
        sure = asked and behind_small and head[-1].lower not in _VAGUE
        if sure or all(word.text.isupper() and len(word.text) > 1 for word in head):
            one.begin = rest.begin
            return
        ranked = head[-1].lower in _RANKS and not head[0].among(like.articles)
        alone = mine[0].opens and cut == 1 and mine[cut].text not in _PARTICLES
        if asked or ranked or (alone and head[0].lower not in _INSTITUTIONS):
            one.doubt = True
            one.others.append(self.prompt[rest.begin : one.end])

    def _before(self, one: Named, first: int, mine: list[Word]) -> None:
        """Words before the name that may belong to it: numbers, and kinds ("la tour Eiffel")."""
        said, like = self.words, self.like
        last = said[first - 1] if first else None
        if last is not None and last.text.isdigit() and last.behind in ("", ":"):
            dated = len(last.text) == 4 and first > 1 and said[first - 2].lower in _SINCE
            one.doubt = one.doubt or not dated
            one.others += [] if dated else [self.prompt[last.begin : one.end]]
        if last is None or last.behind or mine[0].before:
            last = None
        if one.end - one.begin == 1:
            one.doubt = True
            one.others += [self.prompt[last.begin : one.end]] if last is not None and last.text else []
        if not like.bounded:
            return
        known = like.grammar | like.weak | like.verbs | like.makers
        begins = one.begin == one.run.begin and not mine[0].elided
        if last is not None and begins and last.text.islower() and not last.among(known):
            one.doubt = True
            one.others.append(self.prompt[last.begin : one.end])
        if mine[0].opens and mine[0].elided:  # L'Oréal, L'Espagne
            one.doubt = True
            one.others.append(self.prompt[one.begin + mine[0].elided : one.end])

    def _inside(self, one: Named, first: int, mine: list[Word]) -> None:
        """Words of the name that may be another name."""
        if len(mine) < 2:
            return
        if mine[-1].lower in NATIONS:
            if self.words[0].lower in _COPULAS:  # "Was Albert Einstein German?"
                one.end = mine[-2].end
            else:
                one.doubt = True
                one.others.append(self.prompt[one.begin : mine[-2].end])
        owner = next(
            (word for word in mine[:-1] if word.lower[-1:] == "s" and word.lower not in _FIRST), None
        )
        if self.like.nouns_capital and owner is not None:  # "Angela Merkels Nachfolger"
            one.doubt = True
            one.others.append(self.prompt[one.begin : owner.end])
        # Subject and object may stand side by side: "Wann schrieb Goethe Faust?"
        acts = (self.like.verbs | self.like.makers) - _STATES
        before = self.words[first - 1].lower if first else ""
        later = before in ("hat", "haben") and any(word.lower in acts for word in self.words[first:])
        free = self.like.bounded or self.like.nouns_capital
        if free and (before in acts or later) and self.words[0].lower not in _WHO:
            one.doubt = True
            one.others += [word.text for word in mine if word.is_name]

    def _behind(self, one: Named) -> None:
        """Words behind the name that may belong to it: "République française", "The old man"."""
        run, said, like = one.run, self.words, self.like
        last = run.last if run.last < len(said) and not said[run.last - 1].behind else None
        small = like.grammar | like.weak
        if like.nouns_capital:
            before = said[run.first - 1] if run.first else None
            governed = before is not None and (before.lower == "des" or before.among(like.nouns))
            # The ending of a genitive: "des Telefons", "die Hauptstadt Frankreichs".
            one.doubt = one.doubt or (governed and self.prompt[one.begin : one.end].endswith("s"))
        elif last is not None and (like.bounded or self.makes(run.first)):
            known = small | like.verbs | like.makers if like.bounded else small
            if not said[last].text.islower() or said[last].among(known):
                return
            one.doubt = True
            one.others.append(self.prompt[one.begin : said[last].end])
            while last + 1 < len(said) and not said[last].behind and said[last + 1].text.islower():
                last += 1
                if said[last].among(like.grammar | like.verbs):
                    break
                if not said[last].among(small):
                    one.others[-1] = self.prompt[one.begin : said[last].end]
