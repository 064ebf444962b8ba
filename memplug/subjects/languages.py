"""Words of some languages that tell which language a prompt is in and which of its words are no names.

Small on purpose: what they leave open is asked, not guessed (see `find`).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LANGUAGES", "MONTHS", "NATIONS", "Language", "language_of", "words"]


class Language(NamedTuple):
    """Words in lower case.

    Attributes:
        name: its code.
        grammar: question words, articles, prepositions, auxiliaries: no names, and proof of the language.
        weak: more of these, which other languages have too.
        articles: articles; with a capital inside a sentence they begin a title.
        joiners: words that stand within a name.
        nouns: what a fact says of its subject (capital, author, ...).
        verbs: what stands beside a subject and is no part of a name.
        makers: verbs and kinds of works, behind which a title stands.
        openers: other words that begin a prompt without being names.
        nouns_capital: whether every noun has a capital, so that a capital tells nothing.
        bounded: whether adjectives and kinds stand beside a name without being seen ("la tour Eiffel").
    """

    name: str
    grammar: frozenset[str]
    weak: frozenset[str]
    articles: frozenset[str]
    joiners: frozenset[str]
    nouns: frozenset[str]
    verbs: frozenset[str]
    makers: frozenset[str]
    openers: frozenset[str] = frozenset()
    nouns_capital: bool = False
    bounded: bool = False

    @property
    def no_names(self) -> frozenset[str]:
        """Words that are no names by themselves."""
        return self.grammar | self.weak | self.nouns | self.openers


def words(text: str) -> frozenset[str]:
    """The words of a text, each once."""
    return frozenset(text.split())


_ENGLISH = Language(
    "en",
    grammar=words(
        """
        what which who whom whose where when why how are was were am does did has have had can could will
        would shall should may might must at of for from by is with about after before during into than then
        the but or and not its he she they it you my his her their our your this that these those there here
        been being also if as
        """
    ),
    weak=words("a an in to on be do we i me so no s q"),
    articles=words("the a an"),
    joiners=words("of the de da del della der den di do dos la le les van von du & al bin ibn ben"),
    nouns=words(
        """
        capital population currency language tongue mother father wife husband spouse son daughter brother
        sister parents author writer founder creator inventor discoverer director composer painter producer
        president minister chancellor mayor governor secretary leader head chairman chairwoman chief captain
        coach manager owner ceo cfo cto coo gdp hq headquarters birthplace birthday birthdate nationality
        profession occupation location height length area size depth age date year place name country city
        continent state religion official original native main prime vice deputy current number symbol
        formula definition meaning maker manufacturer developer publisher translator editor employer
        """
    ),
    verbs=words(
        """
        born lives lived died founded located based made found speaks spoken works worked plays played known
        called invented discovered created stands lies belongs leads
        """
    ),
    makers=words(
        """
        wrote written write directed direct composed compose painted paint sang recorded published authored
        novel film movie book song album play poem opera painting series game show musical magazine
        """
    ),
    openers=words(
        """
        name tell give please describe list solve explain write find compute calculate translate define
        complete answer identify choose state mention show guess remember imagine consider discuss compare
        summarize suggest continue finish fill repeat say think let make use count convert spell predict
        note question fact trivia prompt user assistant context today yesterday tomorrow currently nowadays
        recently historically officially according once people someone everybody everyone nobody most many
        some all every each any only since until while because although however therefore actually generally
        usually yes no ok hello hi hey thanks dear sorry both one two three there's
        """
    ),
)
_GERMAN = Language(
    "de",
    grammar=words(
        """
        wer wie wo wann warum was welche welcher welches welchem welchen wessen wem wen woher wohin wieviel
        viele der die das den dem des ein eine einen einem einer eines von vom zu zum zur im am bei mit aus
        auf für nach über unter durch um ist sind war waren wird wurde wurden hat hatte haben hieß heißt
        heißen liegt liegen und oder nicht es er sie man kommt steht gibt lebt
        """
    ),
    weak=words("in an hoch alt groß lang"),
    articles=words("der die das den dem des ein eine"),
    joiners=words("van & de la"),
    nouns=words(
        """
        hauptstadt muttersprache sprache amtssprache einwohnerzahl bevölkerung währung präsident präsidentin
        bundespräsident kanzler bundeskanzler kanzlerin könig königin bürgermeister minister autor autorin
        schriftsteller gründer gründerin erfinder erfinderin entdecker regisseur regisseurin komponist maler
        land stadt staat kontinent name jahr ort geburtsort geburtstag geburtsjahr geburtsdatum todesjahr
        beruf nationalität staatsangehörigkeit religion höhe länge fläche größe sitz hauptsitz chef firma
        unternehmen hersteller mutter vater frau mann ehefrau ehemann sohn tochter bruder schwester buch
        roman film lied oper gedicht titel
        """
    ),
    verbs=words(
        "geboren gegründet gestorben schrieb geschrieben erfand erfunden entdeckte spricht gesprochen"
    ),
    makers=words("schrieb geschrieben verfasste komponierte malte drehte roman film buch lied oper gedicht"),
    openers=words("nenne sag sage bitte frage antwort heute wem ja nein"),
    nouns_capital=True,
)
_FRENCH = Language(
    "fr",
    grammar=words(
        """
        quel quelle quels quelles qui que quoi où quand comment pourquoi combien est sont était fut ont les
        des du un une au aux dans par pour avec sur ce cette ces il elle ils elles on et ou se s'appelle
        lequel est-il est-elle a-t-il a-t-elle sont-ils est-ce qu'est-ce se-trouve
        """
    ),
    weak=words("de la le en à a l d c"),
    articles=words("le la les l un une des"),
    joiners=words("de du des la le les d &"),
    nouns=words(
        """
        capitale population monnaie langue maternelle président présidente ministre maire roi reine auteur
        auteure écrivain fondateur fondatrice inventeur inventrice réalisateur réalisatrice compositeur
        peintre pays ville continent nom année date lieu naissance profession nationalité hauteur longueur
        superficie siège directeur mère père femme mari fils fille frère sœur
        """
    ),
    verbs=words(
        "né née mort morte écrit réalisé peint composé fondé inventé découvert trouve trouver situé parle"
    ),
    makers=words("écrit réalisé peint composé roman film livre chanson opéra poème tableau pièce"),
    openers=words("dis donne nomme question réponse aujourd'hui oui non"),
    bounded=True,
)
_SPANISH = Language(
    "es",
    grammar=words(
        """
        qué quién quiénes cuál cuáles dónde cuándo cómo cuánto cuánta cuántos cuántas que quien es son fue
        era fueron está están los las del al un una el por para con sin sobre y o se su sus este esta tiene
        hay ha han
        """
    ),
    weak=words("de la en a lo"),
    articles=words("el la los las un una lo"),
    joiners=words("de del la las los &"),
    nouns=words(
        """
        capital población moneda idioma lengua materna presidente presidenta ministro alcalde alcaldesa rey
        reina autor autora escritor fundador fundadora inventor inventora director directora compositor
        pintor país ciudad continente nombre año fecha lugar nacimiento profesión nacionalidad altura
        longitud superficie sede madre padre esposa esposo hijo hija hermano hermana
        """
    ),
    verbs=words(
        "nació nacido nacida murió escribió escrito dirigió pintó compuso fundó fundada inventó descubrió "
        "fundado encuentra ubicado ubicada habla llama queda"
    ),
    makers=words("escribió dirigió pintó compuso novela película libro canción ópera poema cuadro obra"),
    openers=words("di dime nombra pregunta respuesta hoy sí no"),
    bounded=True,
)
_ITALIAN = Language(
    "it",
    grammar=words(
        """
        chi che cosa quale quali qual dove quando come perché quanto quanta quanti quante è sono era fu
        furono gli del dello della dei degli delle nel nella nello al alla allo dal dalla un uno una per con
        su e o si ha hanno il dov'è cos'è com'è qual'è
        """
    ),
    weak=words("di la le lo i da in a l"),
    articles=words("il lo la i gli le l un uno una"),
    joiners=words("di da de del della dei degli delle la &"),
    nouns=words(
        """
        capitale popolazione moneta valuta lingua madre presidente ministro sindaco re regina autore autrice
        scrittore fondatore fondatrice inventore regista compositore pittore paese città continente nome
        anno data luogo nascita professione nazionalità altezza lunghezza superficie sede padre moglie
        marito figlio figlia fratello sorella
        """
    ),
    verbs=words(
        "nato nata morto morta scritto diretto dipinto composto fondato fondata scoperto trova parla"
    ),
    makers=words("scritto diretto dipinto composto romanzo film libro canzone opera poesia quadro"),
    openers=words("dimmi nomina domanda risposta oggi sì no"),
    bounded=True,
)
_RUSSIAN = Language(
    "ru",
    grammar=words("где кто что когда как почему сколько был была это"),
    weak=frozenset(),
    articles=frozenset(),
    joiners=frozenset(),
    nouns=frozenset(),
    verbs=words("родился родилась умер умерла написал написала жил жила"),
    makers=frozenset(),
    bounded=True,  # and a name that another word governs is inflected
)

LANGUAGES = (_ENGLISH, _GERMAN, _FRENCH, _SPANISH, _ITALIAN, _RUSSIAN)
"""The languages that are known; of those that fit a prompt equally well the first counts."""

MONTHS = words(
    """
        january february march april may june july august september october november december monday tuesday
        wednesday thursday friday saturday sunday januar februar märz mai juni juli oktober dezember
        """
)
NATIONS = words(
    """
        american british english french german italian spanish portuguese dutch swedish danish norwegian
        finnish russian polish greek turkish chinese japanese korean indian arabic hebrew latin african
        asian european australian canadian mexican brazilian irish scottish welsh swiss austrian belgian
        hungarian czech ukrainian romanian egyptian iranian persian israeli jewish christian catholic muslim
        roman
        """
)
"""Adjectives of peoples and languages: they have a capital and are seldom what a prompt is about."""


def language_of(said: list[str]) -> Language | None:
    """The language of a prompt's words, in lower case; None where none is known."""

    def score(one: Language) -> int:
        sure = (
            one.grammar
            | one.verbs
            | one.makers
            | one.openers
            | (frozenset() if one.nouns_capital else one.nouns)
        )
        return sum(2 if word in sure else word in one.weak for word in said)

    best = max(LANGUAGES, key=score)
    return best if score(best) > 1 else None  # a small word alone may be of any language
