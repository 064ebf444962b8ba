"""From one forward's states to what speaks at its tokens, and how it follows a cache's rows."""

from __future__ import annotations

import copy

import pytest
import torch

from memplug.memory import KeyMemory
from memplug.model.context import Call
from memplug.model.row_state import held_by, hold
from memplug.retrieval.calibration import Calibration
from memplug.retrieval.listening import Heard, Listener
from memplug.retrieval.questions import Metric, Question
from memplug.retrieval.reading import Reader
from memplug.text.turns import Turns

THINK, RELATION = (0, 2), 1
NOTHING = torch.zeros(4)
A, B, C, Q = torch.eye(4)
# Token ids: 0 pads, 10.. are words; an answer is 7 8; 1 is the BOS.
WORD, END, USER, STOP, ANSWER, LY, ON = 10, 11, 12, 13, 14, 7, 8
PIECES = {WORD: " word", END: ".", LY: "Ly", ON: "on", USER: "<u>", STOP: "<e>", ANSWER: "<a>"}


def listener_of(turns=None, starts=False):
    """Key 5 is the word A, key 6 the words B C; each has an edit that Q asks for."""
    memory = KeyMemory(2, 4, threshold=0.9, quorum=2)
    memory.add(5, A.expand(2, 1, 4))
    memory.add(6, torch.stack([B, C]).expand(2, 2, 4))
    reader = Reader(
        lambda token: PIECES.get(token, ""), turns, lambda key: [f"e{key}"], lambda edit: ((LY, ON),), 4
    )
    asked = [Question(state, chat) for state in (A, Q) for chat in (False, True)]
    questions = {"e5": (asked[2:], None), "e6": (asked, None)}
    return Listener(memory, reader, THINK, RELATION, questions.__getitem__, starts)


def calibration_of(first=None):
    """The space as it is; ``first`` moves the first token's mean."""
    mean, root = torch.zeros(2, 4), torch.eye(4).expand(2, 4, 4)
    own = mean if first is None else first.expand(2, 4)
    metric = Metric(torch.zeros(2, 4), torch.zeros(2, 4, 0), torch.zeros(2, 0), torch.full((2,), 1e9))
    return Calibration(
        (*THINK, RELATION),
        mean,
        root,
        own,
        root,
        0.9,
        0.9,
        metric,
        (0.5, 0.5),
        1.0,
        torch.zeros(1, 1, 4),
        torch.zeros(1).long(),
    )


def call_of(*rows, asked=None, ids=None, past=0, held=None, real=None):
    """A forward whose think layers saw these words, and whose relation layer saw ``asked``."""
    states = torch.stack([torch.stack(row) for row in rows])
    other = torch.zeros_like(states) if asked is None else torch.stack([torch.stack(row) for row in asked])
    ok = torch.ones(states.shape[:2], dtype=torch.bool) if real is None else torch.tensor(real)
    none = torch.zeros(len(rows), dtype=torch.long)
    tokens = torch.full(ok.shape, WORD) if ids is None else torch.tensor(ids)
    kept = {0: states, 1: other, 2: states}
    return Call(ok, ok, past, none, none, held=held, states=kept, ids=tokens)


def listen(listener, call, calibration=None, longest=2):
    heard, spoken = listener.listen(calibration or calibration_of(), call, longest)
    return heard, [[[one.edit for one in at] for at in row] for row in spoken]


def test_named_and_asked_for():
    listener = listener_of()
    words, asked = [A, NOTHING, NOTHING], [NOTHING, NOTHING, Q]
    assert listen(listener, call_of(words, asked=[asked]))[1] == [[[], [], ["e5"]]]
    assert listen(listener, call_of(words))[1] == [[[], [], []]]
    assert listen(listener, call_of([NOTHING] * 3, asked=[asked]))[1] == [[[], [], []]]
    weak = [NOTHING, NOTHING, Q + 2 * B]  # cosine 0.45
    assert listen(listener, call_of(words, asked=[weak]))[1] == [[[], [], []]]


def test_both_layers_have_to_see_it_at_the_same_token():
    listener = listener_of()
    call = call_of([A, NOTHING], asked=[[NOTHING, Q]])
    call.states[2] = call.states[2].flip(1)
    assert listen(listener, call)[1] == [[[], []]]


def test_each_row_alone():
    listener = listener_of()
    rows = [[A, NOTHING, NOTHING], [NOTHING, B, C], [C, B, NOTHING]]
    asks = [[NOTHING, NOTHING, Q], [Q, NOTHING, NOTHING], [NOTHING, NOTHING, Q]]
    together = listen(listener, call_of(*rows, asked=asks))[1]
    assert together == [[[], [], ["e5"]], [[], [], ["e6"]], [[], [], []]]
    for row, ask, said in zip(rows, asks, together, strict=True):
        assert listen(listener, call_of(row, asked=[ask]))[1] == [said]


@pytest.mark.parametrize("left", [True, False])
def test_padding_is_not_read(left):
    listener = listener_of()
    row, ask, blank = [A, NOTHING], [NOTHING, Q], [A, A]
    side = (lambda x, y: [*y, *x]) if left else (lambda x, y: [*x, *y])
    real = [side([True, True], [False, False])]
    heard, said = listen(listener, call_of(side(row, blank), asked=[side(ask, [Q, Q])], real=real))
    assert said == [side([[], ["e5"]], [[], []])]
    assert heard.rows[0].reading.count == 2
    alone, _ = listen(listener, call_of(row, asked=[ask]))
    assert heard.rows[0].reading == alone.rows[0].reading
    assert torch.equal(heard.rows[0].tail, alone.rows[0].tail)


WORDS = [NOTHING, B, C, NOTHING, A, NOTHING, NOTHING]
ASKS = [NOTHING, NOTHING, NOTHING, Q, Q, A, Q]
IDS = [WORD, WORD, WORD, WORD, LY, ON, WORD]


def whole(listener):
    return listen(listener, call_of(WORDS, asked=[ASKS], ids=[IDS]))


@pytest.mark.parametrize("cuts", [(3,), (2,), (1, 2, 3, 4, 5, 6), (2, 5)])
def test_in_pieces_as_in_one(cuts):
    """A subject's tokens may come in two forwards, and so may what asks and what is answered."""
    listener = listener_of()
    told, want = whole(listener)
    assert want[0][3:5] == [["e6"], ["e6"]]
    held, said = None, []
    for begin, end in zip([0, *cuts], [*cuts, len(WORDS)], strict=True):
        call = call_of(WORDS[begin:end], asked=[ASKS[begin:end]], ids=[IDS[begin:end]], past=begin, held=held)
        held, more = listen(listener, call)
        said += more[0]
    assert said == want[0]
    assert held.rows[0].reading == told.rows[0].reading
    assert torch.equal(held.rows[0].tail[:, -1], told.rows[0].tail[:, -1])


def test_the_state_of_the_question_counts_in_another_forward():
    """Some tokens back, in the forward before."""
    listener = listener_of(Turns((USER,), (STOP, ANSWER)))
    states, asks = [NOTHING, NOTHING, A, NOTHING, NOTHING], [NOTHING, Q, NOTHING, NOTHING, NOTHING]
    ids = [USER, WORD, WORD, STOP, ANSWER]
    assert listen(listener, call_of(states, asked=[asks], ids=[ids]))[1] == [[[], [], [], [], ["e5"]]]
    for cut in (1, 2, 3, 4):
        held, _ = listen(listener, call_of(states[:cut], asked=[asks[:cut]], ids=[ids[:cut]]))
        call = call_of(states[cut:], asked=[asks[cut:]], ids=[ids[cut:]], past=cut, held=held)
        assert listen(listener, call)[1][0][-1] == ["e5"], cut


def two_rows(listener):
    call = call_of([A, NOTHING], [NOTHING, B], asked=[[NOTHING, Q], [Q, NOTHING]])
    return listen(listener, call)[0]


def test_rows_are_selected_and_repeated():
    listener = listener_of()
    held = two_rows(listener)
    chosen = held.select(torch.tensor([1, 1, 0]))
    assert len(chosen) == 3
    call = call_of([C], [NOTHING], [NOTHING], asked=[[Q], [Q], [NOTHING]], ids=[[WORD], [WORD], [LY]])
    call.past, call.held = 2, chosen
    assert listen(listener, call)[1] == [[["e6"]], [[]], [["e5"]]]


def test_a_copy_is_the_same():
    held = two_rows(listener_of())
    assert copy.deepcopy(held) is held


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 6])
def test_a_cut_takes_back_what_was_read(length):
    """As if the forward had ended there (a draft that was not accepted)."""
    listener = listener_of()
    told, want = whole(listener)
    cut = told.crop(length)
    rest = slice(length, None)
    call = call_of(WORDS[rest], asked=[ASKS[rest]], ids=[IDS[rest]], past=length, held=cut)
    again, said = listen(listener, call)
    assert said[0] == want[0][rest]
    assert again.rows[0].reading == told.rows[0].reading


def test_a_cut_of_a_later_forward():
    listener = listener_of()
    held, _ = listen(listener, call_of(WORDS[:2], asked=[ASKS[:2]], ids=[IDS[:2]]))
    drafted, _ = listen(
        listener, call_of([C, A, A], asked=[[Q, Q, Q]], ids=[[WORD, LY, ON]], past=2, held=held)
    )
    back = drafted.crop(2)
    assert back.rows[0].reading == held.rows[0].reading
    call = call_of(WORDS[2:], asked=[ASKS[2:]], ids=[IDS[2:]], past=2, held=back)
    assert listen(listener, call)[1][0] == whole(listener)[1][0][2:]
    kept = drafted.crop(3)
    assert kept.rows[0].reading.count == 3
    assert kept.crop(2).rows[0].reading == held.rows[0].reading


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_cut_back_into_the_prompt(length):
    """After single tokens, as where an answer is generated again; also for rows that were selected since."""
    listener = listener_of()
    held, _ = listen(listener, call_of(*[[NOTHING] * 3, WORDS[:3]], asked=[[Q] * 3, ASKS[:3]]))
    for past in (3, 4):
        held, _ = listen(listener, call_of([A], [A], asked=[[Q], [Q]], past=past, held=held))
        held = held.select(torch.tensor([1, 0]))
    held = held.select(torch.tensor([1, 1]))  # row 1 of the first forward, twice
    cut = held.crop(length)
    assert [row.reading.count for row in cut.rows] == [length] * 2
    rest = slice(length, None)
    rows, asks, ids = [WORDS[rest]] * 2, [ASKS[rest]] * 2, [IDS[rest]] * 2
    said = listen(listener, call_of(*rows, asked=asks, ids=ids, past=length, held=cut))[1]
    assert said[0] == said[1] == whole(listener)[1][0][rest]


def test_a_cut_between_keeps_what_was_read():
    listener = listener_of()
    held, _ = listen(listener, call_of(WORDS[:2], asked=[ASKS[:2]]))
    for past in (2, 3, 4):
        held, _ = listen(listener, call_of([NOTHING], past=past, held=held))
    assert held.crop(3) is held


def test_what_another_listener_heard_does_not_count():
    held = two_rows(listener_of())
    call = call_of([NOTHING], [C], asked=[[Q], [Q]], past=2, held=held)
    heard, said = listen(listener_of(), call)
    assert said == [[[]], [[]]]
    assert heard.rows[0].reading.count == 1
    call = call_of([NOTHING], asked=[[Q]], past=2, held=held)  # other rows than were held
    assert listen(held.owner, call)[1] == [[[]]]


def test_the_first_token_of_a_text_is_calibrated_on_its_own():
    """Moved by its own mean: A is seen where it begins a text, as A + B elsewhere."""
    calibration = calibration_of(first=5 * B)
    begin, middle = A + 5 * B, A
    for starts, states, found in (
        (True, [begin, NOTHING], True),
        (True, [NOTHING, middle, NOTHING], True),
        (True, [NOTHING, begin, NOTHING], False),
        (False, [begin, NOTHING], False),
        (False, [middle, NOTHING], True),
    ):
        listener = listener_of(starts=starts)
        asks = [[NOTHING] * (len(states) - 1) + [Q]]
        said = listen(listener, call_of(states, asked=asks), calibration)[1]
        assert said[0][-1] == (["e5"] if found else []), (starts, states)
    # In a later forward nothing begins.
    listener = listener_of(starts=True)
    held, _ = listen(listener, call_of([NOTHING]), calibration)
    call = call_of([middle, NOTHING], asked=[[NOTHING, Q]], past=1, held=held)
    assert listen(listener, call, calibration)[1][0][-1] == ["e5"]


def test_a_row_that_is_all_padding():
    listener = listener_of(starts=True)
    call = call_of([A, A], [A, NOTHING], asked=[[Q, Q], [NOTHING, Q]], real=[[False] * 2, [True] * 2])
    heard, said = listen(listener, call)
    assert said == [[[], []], [[], ["e5"]]]
    assert heard.rows[0].reading.count == 0


def test_embeddings_without_ids():
    """Nothing is known of the tokens; a subject and what asks are seen all the same."""
    call = call_of([A, NOTHING], asked=[[NOTHING, Q]])
    call.ids = None
    assert listen(listener_of(), call)[1] == [[[], ["e5"]]]


def test_it_follows_a_cache():
    from transformers import DynamicCache

    held = two_rows(listener_of())
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 2, 4), torch.zeros(2, 1, 2, 4), 0)
    hold(cache, held)
    cache.reorder_cache(torch.tensor([1, 0]))
    assert held_by(cache).rows == (held.rows[1], held.rows[0])
    cache.batch_repeat_interleave(2)
    assert len(held_by(cache)) == 4
    assert isinstance(held_by(copy.deepcopy(cache)), Heard)
    cache.reset()
    assert held_by(cache) is None


@pytest.mark.parametrize("cut", [40, 75, 90])
def test_a_long_sentence_in_pieces_as_in_one(cut):
    """What asks stands further back than is kept between two forwards: it counts in neither."""
    for far in (True, False):
        listener = listener_of()
        words = [NOTHING] * 90 + [A, NOTHING]
        asks = [Q if far else NOTHING] + [NOTHING] * 90 + [NOTHING if far else Q]
        want = listen(listener, call_of(words, asked=[asks]))[1][0]
        held, said = listen(listener, call_of(words[:cut], asked=[asks[:cut]]))
        call = call_of(words[cut:], asked=[asks[cut:]], past=cut, held=held)
        assert said[0] + listen(listener, call)[1][0] == want
        assert want[-1] == ([] if far else ["e5"])
