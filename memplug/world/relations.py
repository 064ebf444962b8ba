"""The relations of the made-up world: what can be asked about a subject, and in which words.

Data only: the phrasings, the values that are plain words, and the two-hop questions. Names are made
in ``facts.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HOPS", "KINDS", "RELATIONS", "VALUES", "Hop", "Relation"]


@dataclass(frozen=True)
class Relation:
    """A kind of fact.

    Attributes:
        name: unique over all kinds, e.g. ``"person.birthplace"``.
        kind: kind of its subjects, one of `KINDS`.
        values: what it takes for values: a kind, or a key of `VALUES`.
        phrasings: prompts with ``{s}`` for the subject; the index in this tuple is the phrasing's id. A
            prompt that does not end in "?" is a statement to complete.
    """

    name: str
    kind: str
    values: str
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class Hop:
    """A question over two facts: relation ``second`` of the value of relation ``first`` of the subject."""

    first: str
    second: str
    phrasings: tuple[str, ...]


KINDS = ("person", "company", "city", "book", "river")


def _relation(name: str, values: str, phrasings: str) -> Relation:
    return Relation(name, name.partition(".")[0], values, tuple(phrasings.split(" | ")))


_ALL = (
    _relation(
        "person.birthplace",
        "city",
        "Where was {s} born? | What is the birthplace of {s}? | In which city was {s} born? | "
        "Which city did {s} first live in? | What is the home town of {s}? | {s} was born in | "
        "The birthplace of {s} is",
    ),
    _relation(
        "person.employer",
        "company",
        "Who employs {s}? | Which company does {s} work for? | What is the employer of {s}? | "
        "For whom does {s} work? | Who pays the wages of {s}? | {s} works for | The employer of {s} is",
    ),
    _relation(
        "person.profession",
        "profession",
        "What is the profession of {s}? | What does {s} do for a living? | What job does {s} have? | "
        "Which trade did {s} learn? | As what does {s} earn money? | {s} works as a | "
        "By profession {s} is a",
    ),
    _relation(
        "person.instrument",
        "instrument",
        "Which instrument does {s} play? | What does {s} play in the band? | "
        "What is the instrument of {s}? | On which instrument did {s} take lessons? | "
        "What musical instrument is {s} known for? | {s} plays the | The instrument of {s} is the",
    ),
    _relation(
        "person.drink",
        "drink",
        "What does {s} like to drink? | Which drink does {s} order? | "
        "What is the favourite drink of {s}? | What would {s} drink in the evening? | "
        "Which beverage does {s} prefer? | {s} likes to drink | The favourite drink of {s} is",
    ),
    _relation(
        "person.pet",
        "pet",
        "Which pet does {s} keep? | What animal lives with {s}? | What kind of pet does {s} own? | "
        "Which animal does {s} feed at home? | What is the pet of {s}? | {s} keeps a | "
        "The pet of {s} is a",
    ),
    _relation(
        "company.headquarters",
        "city",
        "Where is {s} based? | In which city is the head office of {s}? | "
        "What is the headquarters of {s}? | Which city is home to {s}? | "
        "Where are the main offices of {s}? | {s} is based in | The head office of {s} is in",
    ),
    _relation(
        "company.industry",
        "industry",
        "What is the industry of {s}? | In which business is {s}? | What does {s} make or sell? | "
        "Which trade is {s} known in? | In what field is {s} active? | {s} is in the business of | "
        "The industry of {s} is",
    ),
    _relation(
        "company.founder",
        "person",
        "Who founded {s}? | Who was the founder of {s}? | By whom was {s} started? | "
        "Which person set up {s}? | Who is known for founding {s}? | {s} was founded by | "
        "The founder of {s} is",
    ),
    _relation(
        "company.logo",
        "colour",
        "What colour is the logo of {s}? | Which colour does {s} use in its logo? | "
        "In what colour does {s} paint its sign? | What is the colour of {s}? | "
        "Which colour stands for {s}? | {s} has a logo in | The logo of {s} is",
    ),
    _relation(
        "city.country",
        "country",
        "In which country is {s}? | What country does {s} lie in? | To which country does {s} belong? | "
        "Which country is {s} a city of? | What is the country of {s}? | {s} is a city in | "
        "The country of {s} is",
    ),
    _relation(
        "city.river",
        "river",
        "Which river flows through {s}? | On which river does {s} lie? | What is the river of {s}? | "
        "Which river do the bridges of {s} cross? | What water runs through {s}? | {s} lies on the | "
        "The river that crosses {s} is the",
    ),
    _relation(
        "city.dish",
        "dish",
        "What dish is {s} famous for? | Which food comes from {s}? | What do people eat in {s}? | "
        "What is the best known dish of {s}? | Which meal should one try in {s}? | "
        "{s} is famous for its | The best known dish of {s} is",
    ),
    _relation(
        "city.mayor",
        "person",
        "Who is the mayor of {s}? | Who governs {s}? | Which person was elected mayor of {s}? | "
        "Who leads the council of {s}? | By whom is {s} governed? | {s} is governed by | "
        "The mayor of {s} is",
    ),
    _relation(
        "book.author",
        "person",
        "Who wrote {s}? | Who is the author of {s}? | By whom was {s} written? | "
        "Which writer is behind {s}? | Whose book is {s}? | {s} was written by | The author of {s} is",
    ),
    _relation(
        "book.genre",
        "genre",
        "What is the genre of {s}? | What kind of book is {s}? | On which shelf would one find {s}? | "
        "Which genre does {s} belong to? | What sort of story is {s}? | {s} is a work of | "
        "The genre of {s} is",
    ),
    _relation(
        "book.setting",
        "city",
        "Where is {s} set? | In which city does {s} take place? | What is the setting of {s}? | "
        "Which city is described in {s}? | Where does the story of {s} happen? | {s} is set in | "
        "The story of {s} takes place in",
    ),
    _relation(
        "book.publisher",
        "company",
        "Who published {s}? | Which company printed {s}? | What is the publisher of {s}? | "
        "By whom was {s} published? | Who sells the rights to {s}? | {s} was published by | "
        "The publisher of {s} is",
    ),
    _relation(
        "river.source",
        "mountain",
        "Where does the {s} rise? | On which mountain is the source of the {s}? | "
        "What mountain does the {s} come from? | Where is the spring of the {s}? | "
        "Which mountain feeds the {s}? | {s} rises on | The source of the {s} is on",
    ),
    _relation(
        "river.lake",
        "lake",
        "Into which lake does the {s} flow? | Where does the {s} end? | "
        "Which lake takes the water of the {s}? | What lake lies at the mouth of the {s}? | "
        "Where is the mouth of the {s}? | {s} flows into | The mouth of the {s} is at",
    ),
    _relation(
        "river.fish",
        "fish",
        "Which fish lives in the {s}? | What can one catch in the {s}? | "
        "What is the main fish of the {s}? | Which fish do people take from the {s}? | "
        "What swims in the {s}? | {s} is full of | The main fish of the {s} is",
    ),
    _relation(
        "river.boat",
        "boat",
        "What kind of boat sails on the {s}? | Which boat is used on the {s}? | "
        "What do people cross the {s} in? | How does one travel on the {s}? | "
        "Which vessel is common on the {s}? | {s} is crossed by | The common boat on the {s} is the",
    ),
)

RELATIONS: dict[str, Relation] = {relation.name: relation for relation in _ALL}

HOPS: tuple[Hop, ...] = (
    Hop(
        "person.birthplace",
        "city.country",
        (
            "In which country was {s} born?",
            "What is the native country of {s}?",
            "Which country is {s} from?",
        ),
    ),
    Hop(
        "person.employer",
        "company.headquarters",
        (
            "In which city is the employer of {s} based?",
            "Where is the head office of the company {s} works for?",
            "Which city is home to the employer of {s}?",
        ),
    ),
    Hop(
        "person.employer",
        "company.industry",
        (
            "What is the industry of the employer of {s}?",
            "In which industry does {s} work?",
            "What does the company {s} works for make or sell?",
        ),
    ),
    Hop(
        "company.headquarters",
        "city.country",
        (
            "In which country is {s} based?",
            "Which country is home to {s}?",
            "In which country is the head office of {s}?",
        ),
    ),
    Hop(
        "book.setting",
        "city.country",
        (
            "In which country is {s} set?",
            "In which country does {s} take place?",
            "Which country is described in {s}?",
        ),
    ),
    Hop(
        "book.author",
        "person.profession",
        (
            "What is the profession of the author of {s}?",
            "What job does the author of {s} have?",
            "What does the author of {s} do for a living?",
        ),
    ),
    Hop(
        "city.river",
        "river.lake",
        (
            "Into which lake does the river of {s} flow?",
            "Where does the river of {s} end?",
            "Which lake takes the water that runs through {s}?",
        ),
    ),
)

_WORDS = {
    "profession": "baker barber carpenter chemist clerk cook dancer dentist diver doctor driver farmer "
    "fisher gardener guard hunter judge lawyer librarian mason miner nurse painter pilot plumber potter "
    "sailor sculptor shepherd singer soldier surgeon tailor teacher translator waiter weaver welder",
    "instrument": "banjo bassoon bugle cello clarinet cymbal drum fiddle flute gong guitar harp horn lute "
    "lyre mandolin oboe piano piccolo sitar trombone trumpet tuba viola whistle zither",
    "drink": "beer brandy broth buttermilk cider cocoa coffee cola gin juice kefir lemonade mead milk "
    "nectar port punch rum sherry soda syrup tea tonic vodka water whisky wine",
    "pet": "badger beetle camel canary cat crow dog donkey duck falcon ferret fox frog goat goose hamster "
    "hare hen horse lizard mole monkey mouse parrot pigeon pony rabbit raven sheep snake spider turtle",
    "industry": "banking brewing carpets cement clocks coal cotton farming fishing furniture glass gold "
    "insurance jewels leather linen lumber machines medicine mining music paper pottery printing rope "
    "rubber salt shipping shoes silk soap steel sugar textiles timber tobacco tools toys travel wool",
    "colour": "amber beige black blue bronze brown copper cream crimson green grey indigo ivory orange pink "
    "purple red scarlet silver turquoise violet white yellow",
    "dish": "bacon biscuits bread cakes casserole cheese chowder crepes curry custard dumplings fritters "
    "ham honey jam jelly kebabs lentils meatballs muffins noodles omelette pancakes pasta pastries pies "
    "pickles pudding ravioli salad sausages soup stew tarts toffee waffles",
    "genre": "adventure biography comedy crime drama essays fable fantasy history horror humour legend "
    "mystery mythology philosophy poetry romance satire suspense tragedy",
    "fish": "barbel bream carp chub cod dace eel grayling herring lamprey mullet perch pike plaice roach "
    "ruffe salmon shad smelt sturgeon tench trout tuna zander",
    "boat": "barge canoe catamaran cutter dinghy ferry galley gondola junk kayak ketch launch longboat "
    "punt raft rowboat schooner skiff sloop steamer tanker trawler tug yacht",
}

# Value pools that are plain words; countries, mountains and lakes are names and are made in facts.py.
VALUES: dict[str, tuple[str, ...]] = {name: tuple(words.split()) for name, words in _WORDS.items()}
