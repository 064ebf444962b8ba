"""Text to tokens: seams between prompt and answer, spans, lengths, plain generation, seeded sampling."""

from __future__ import annotations

import copy

import pytest
import torch
from families import TEXTS, build
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from memplug.text.tokens import Text, TokenizerError, TopKSampler

PROMPT = "Where was Ada Quill born?"


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer):
    return make_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build("llama", vocab_size=len(tokenizer))


@pytest.fixture
def text(model, tokenizer):
    return Text(copy.deepcopy(model), tokenizer)


def words(text, *, special=("<s>", "</s>", "<pad>"), **given):
    """A tokenizer with a token for each of the words, told apart at spaces."""
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(text.split())])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=text.split()[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **given)


def test_a_prompt_with_its_answer(text, tokenizer):
    pair = text.pair(PROMPT, "Zarnow")
    assert pair.ids[: pair.start] == tokenizer(PROMPT)["input_ids"]  # what a user's generate is given
    assert tokenizer.decode(pair.ids[pair.start :]) == " Zarnow"
    assert text.pair(PROMPT, "Zarnow", stop=True).ids == [*pair.ids, tokenizer.eos_token_id]
    # A prompt that ends in a line break needs no space.
    line = text.pair(PROMPT + "\n", "Zarnow")
    assert tokenizer.decode(line.ids[line.start :]) == "Zarnow"


def test_a_token_that_spans_the_seam_belongs_to_the_answer(model):
    tokenizer = words("born? born?Zarnow Zarnow Where was", special=("<s>",))
    inner = tokenizer.backend_tokenizer
    inner.pre_tokenizer = pre_tokenizers.Split("#", "removed")  # whole pieces: "born? Zarnow" is one
    inner.model = models.WordLevel(
        {"<s>": 0, "Where was born?": 1, "Where was ": 2, "born? Zarnow": 3}, "<s>"
    )
    pair = Text(model, tokenizer).pair("Where was #born?", "Zarnow")
    assert pair.ids == [2, 3]
    assert pair.start == 1


def test_an_end_token_that_the_tokenizer_adds_is_left_out(model, tokenizer):
    ending = copy.deepcopy(tokenizer)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert ending(PROMPT)["input_ids"][-1] == 2
    assert Text(model, ending).encode(PROMPT) == tokenizer(PROMPT)["input_ids"]


def test_special_ids(model, tokenizer, make_tokenizer):
    assert Text(model, tokenizer).bos_id == 1
    assert Text(model, make_tokenizer(TEXTS, add_bos=False)).bos_id is None  # it has one and does not use it
    several = copy.deepcopy(model)
    several.generation_config.eos_token_id = [2, 7]
    assert Text(several, tokenizer).eos_ids == [2, 7]
    several.generation_config.eos_token_id = None
    assert Text(several, tokenizer).eos_ids == [2]
    bare = words("a b c")
    none = Text(several, bare)
    assert none.eos_ids == []
    assert none.pad_id == 0


def test_a_tokenizer_larger_than_the_model(tokenizer):
    with pytest.raises(
        TokenizerError, match=f"{len(tokenizer)} tokens, the model only 97 embeddings.*resize"
    ):
        Text(build("llama"), tokenizer)


def test_lengths(text, tokenizer):
    assert text.max_length == 128
    assert Text(build("gpt2", vocab_size=400), tokenizer).max_length == 128  # n_positions
    assert Text(build("bloom", vocab_size=400), tokenizer).max_length >= 1 << 20  # no limit
    text.check_length([5] * 127, "a text")
    with pytest.raises(TokenizerError, match="'a text'... is 128 tokens long, the model's context holds 128"):
        text.check_length([5] * 128, "a text")


@pytest.mark.parametrize("piece", ["Ada Quill", "Where", "born?", "Quill"])
def test_the_tokens_of_a_piece_of_text(text, tokenizer, piece):
    begin = PROMPT.index(piece)
    ids, span = text.span(PROMPT, begin, begin + len(piece))
    assert ids == tokenizer(PROMPT)["input_ids"]
    assert tokenizer.decode([ids[i] for i in span]).strip() == piece


def test_a_token_that_reaches_past_the_piece_is_left_out_unless_it_is_all(model):
    tokenizer = words("Who is Ada Quill)? born")
    text = Text(model, tokenizer)
    prompt = "Who is Ada Quill)?"
    begin = prompt.index("Ada")
    assert text.span(prompt, begin, begin + len("Ada Quill"))[1] == range(2, 3)
    begin = prompt.index("Quill")
    assert text.span(prompt, begin, begin + len("Quill"))[1] == range(3, 4)


class Slow:
    """A tokenizer that gives no offsets, as those written in Python do."""

    is_fast = False

    def __init__(self, inner):
        self._inner = inner

    def __call__(self, text, add_special_tokens):
        return self._inner(text, add_special_tokens=add_special_tokens)

    def __len__(self):
        return len(self._inner)

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize("piece", ["Ada Quill", "Where", "Tam"])
def test_tokenizers_without_offsets(model, tokenizer, piece):
    sentence = f"{PROMPT} Tam and Tam, Ada Quill."
    fast, slow = Text(model, tokenizer), Text(model, Slow(tokenizer))
    begin = sentence.index(piece)
    assert slow.span(sentence, begin, begin + len(piece)) == fast.span(sentence, begin, begin + len(piece))
    assert slow.pair(PROMPT, "Zarnow") == fast.pair(PROMPT, "Zarnow")


def test_batches_are_padded_on_the_right(text):
    batch = text.batch([[5, 6, 7], [8]])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]


def greedy(model, ids, count, ends=()):
    """The most likely token again and again, without ``generate``."""
    new: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
            if token in ends:
                break
            new.append(token)
    return new


ROWS = [[1, 20, 30, 40], [1, 50], [1, 60, 61]]


def test_generation_is_plain_whatever_the_model_is_set_to(text):
    plain = [greedy(text.model, row, 8, text.eos_ids) for row in ROWS]
    assert text.generate(ROWS, 8) == plain
    settings = text.model.generation_config
    settings.update(do_sample=True, temperature=3.0, top_p=0.5, repetition_penalty=9.0, num_beams=2)
    settings.update(no_repeat_ngram_size=1, min_length=7, min_new_tokens=5, max_length=5)
    before = settings.to_dict()
    assert text.generate(ROWS, 8) == plain
    assert settings.to_dict() == before


def test_rows_end_at_the_first_stop_token(text):
    free = text.generate(ROWS, 8)
    text.model.generation_config.eos_token_id = [2, free[0][3]]
    text.model.generation_config.min_length = 40  # the model's own wish to go on does not count
    rows = text.generate(ROWS, 8)
    assert rows == [greedy(text.model, row, 8, [2, free[0][3]]) for row in ROWS]
    assert rows[0] == free[0][: free[0].index(free[0][3])]


def test_a_model_without_a_stop_token_is_cut_nowhere(model, tokenizer):
    """The filling id is 0 then, an ordinary token; here it is all that the model says."""
    mute = copy.deepcopy(model)
    mute.generation_config.eos_token_id = mute.generation_config.pad_token_id = None
    with torch.no_grad():
        mute.lm_head.weight[0] = 0
        mute.lm_head.weight[1:] = -torch.ones(32)
        mute.model.norm.weight.fill_(0)  # all logits 0: the first token wins
    bare = words("a b c d", special=("the",))
    text = Text(mute, bare)
    assert (text.eos_ids, text.pad_id) == ([], 0)
    assert text.generate([[1, 2], [3]], 4) == [[0] * 4] * 2


def test_text_is_decoded_as_it_is(model):
    """A tokenizer that would take the space before a full stop away is told not to."""
    tidy = words("born .")
    tidy.clean_up_tokenization_spaces = True
    ids = tidy("born .")["input_ids"]
    assert tidy.decode(ids) == "born."
    assert Text(model, tidy).decode(ids) == "born ."


def test_a_rows_draws_do_not_depend_on_its_neighbours(text):
    def sample(rows, seeds):
        return text.generate(rows, 6, choose=TopKSampler(seeds, 6, 20))

    state = torch.random.get_rng_state()
    together = sample(ROWS, [3, 4, 5])
    assert sample(ROWS[1:2], [4]) == together[1:2]
    assert sample(ROWS[::-1], [5, 4, 3]) == together[::-1]
    assert sample(ROWS, [6, 7, 8]) != together
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draws_follow_the_probabilities_of_the_best_few():
    scores = torch.tensor([[2.0, 0.0, 1.0, -5.0]]).log_softmax(-1).expand(4000, -1)
    sampler = TopKSampler(range(4000), 2, 3)
    for step in range(2):
        drawn = sampler(torch.zeros(4000, 1), scores)
        assert torch.equal(drawn.isfinite().sum(1), torch.ones(4000, dtype=torch.long)), step
        share = torch.bincount(drawn.argmax(1), minlength=4) / 4000
        expected = torch.tensor([2.0, 0.0, 1.0, -torch.inf]).softmax(-1)
        torch.testing.assert_close(share, expected, atol=0.03, rtol=0)
    assert TopKSampler([0], 1, 10)(torch.zeros(1, 1), scores[:1]).isfinite().sum() == 1  # more than there are
