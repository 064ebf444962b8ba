"""In-context editing against literal texts with notes: every family, any company, with or without cache."""

from __future__ import annotations

import copy

import pytest
import torch
from chats import BRACKETS, CHATML, chatting
from families import FAMILIES, TEXTS, build, lexical
from test_contract import Trace, answers, encode

import memplug
from memplug.methods.icl import ICLConfig
from memplug.model.row_state import held_by
from memplug.text.tokens import TokenizerError

PROMPT, OTHER, FAR = "Where was Ada Quill born?", "Who taught Ada Quill?", "Marrow is."
BOTH = "Where was Ada Quill born? Where was it?"
ASKED = [{"role": "user", "content": PROMPT}]
LATER = [*ASKED, {"role": "assistant", "content": "Zarnow"}, {"role": "user", "content": OTHER}]
WINDOWED = {
    family: {"sliding_window": 64} for family, given in FAMILIES.items() if given.get("sliding_window")
}
NO_POSITIONS = {"bloom", "mpt"}  # their forward takes no position_ids


@pytest.fixture(scope="module")
def base(tokenizer):
    return build("llama", vocab_size=len(tokenizer))


def attach(model, tokenizer, **config):
    return memplug.attach(model, tokenizer, "icl", **config)


def literal(plug, tokenizer, text, *ids, **given):
    """Logits of BOS, notes and ``text`` as one text, and without the notes' rows."""
    notes = plug.method._notes.ids([plug.edits[id] for id in ids], False)
    mine = tokenizer(text)["input_ids"]
    whole = torch.tensor([mine[:1] + notes + mine[1:]])
    with plug.paused(), torch.no_grad():
        out = plug.model(input_ids=whole, **given).logits[0]
    return torch.cat([out[:1], out[1 + len(notes) :]])


def positions(inputs, family):
    """Position ids as ``generate`` hands them in."""
    if family in NO_POSITIONS:
        return {}
    return {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_text_with_the_note(family, tokenizer):
    """Rows that read a note, another note, or none, padded on the left."""
    model = build(family, vocab_size=len(tokenizer), **WINDOWED.get(family, {}))
    trace = Trace(model)
    with attach(model, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        plug.edit("Who founded it and what is the capital of Vestland?", "Tam", "Vestland")
        texts = [PROMPT, FAR, "Who founded it and what is the capital of Vestland?"]
        inputs = encode(tokenizer, *texts)
        with torch.no_grad():
            got = model(**inputs, **positions(inputs, family)).logits
            with plug.paused():
                bare = model(**inputs, **positions(inputs, family)).logits
        real = inputs["attention_mask"].bool()
        for row, (text, ids) in enumerate(zip(texts, (["e1"], [], ["e2"]), strict=True)):
            expected = literal(plug, tokenizer, text, *ids) if ids else bare[row][real[row]]
            torch.testing.assert_close(got[row][real[row]], expected, atol=3e-5, rtol=1e-4)
            if ids:
                assert (expected - bare[row][real[row]]).abs().max() > 1e-2  # the note does something
        plain = model(input_ids=torch.tensor([tokenizer(PROMPT)["input_ids"]])).logits[0]
        torch.testing.assert_close(plain, literal(plug, tokenizer, PROMPT, "e1"), atol=3e-5, rtol=1e-4)
    trace.check(model)


def test_exact_in_float64(base, tokenizer):
    model = copy.deepcopy(base).double()
    with attach(model, tokenizer) as plug:
        plug.edit([memplug.Edit(PROMPT, "Zarnow"), memplug.Edit(BOTH, "Tam Wickes")])
        assert [edit.id for edit in plug.explain(PROMPT).edits] == ["e2", "e1"]
        with torch.no_grad():
            got = model(input_ids=torch.tensor([tokenizer(PROMPT)["input_ids"]])).logits[0]
        # Rotary tables are made in float32, at other positions.
        torch.testing.assert_close(got, literal(plug, tokenizer, PROMPT, "e2", "e1"), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "nemotron", "gptj"])
@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"num_beams": 3}])
def test_generates_as_from_one_text(family, settings, tokenizer):
    model = build(family, vocab_size=len(tokenizer), **WINDOWED.get(family, {}))
    with attach(model, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        got = answers(model, tokenizer, PROMPT, FAR, **settings)
        notes = plug.method._notes.ids([plug.edits["e1"]], False)
        mine = tokenizer(PROMPT)["input_ids"]
        whole = torch.tensor([mine[:1] + notes + mine[1:]])
        with plug.paused():
            out = model.generate(
                whole, attention_mask=torch.ones_like(whole), max_new_tokens=6, do_sample=False, **settings
            )
            base_answers = answers(model, tokenizer, PROMPT, FAR, **settings)
        assert got[0] == [token for token in out[0, whole.shape[1] :].tolist() if token]
        assert got[0] != base_answers[0]
        assert got[1] == base_answers[1]


def test_drafts_of_another_model_or_of_the_first_layers(base, tokenizer):
    model = copy.deepcopy(base)
    with attach(model, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        greedy = answers(model, tokenizer, PROMPT)
        with plug.paused():
            assert answers(model, tokenizer, PROMPT) != greedy
        assert answers(model, tokenizer, PROMPT, assistant_model=base) == greedy
        assert answers(model, tokenizer, PROMPT, assistant_early_exit=2) == greedy


def test_right_padding_and_rows_without_a_bos(tokenizer):
    base = lexical("llama", len(tokenizer))  # others see other words where the BOS is missing
    with attach(base, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        ids = tokenizer(PROMPT)["input_ids"]
        batch = torch.tensor([[*ids, 0, 0], [*ids[1:], 0, 0, 0]])
        mask = torch.tensor([[1] * len(ids) + [0, 0], [1] * (len(ids) - 1) + [0, 0, 0]])
        notes = plug.method._notes.ids([plug.edits["e1"]], False)
        with torch.no_grad():
            got = base(input_ids=batch, attention_mask=mask).logits
            with plug.paused():
                alone = base(input_ids=torch.tensor([notes + ids[1:]])).logits[0]
        torch.testing.assert_close(
            got[0, : len(ids)], literal(plug, tokenizer, PROMPT, "e1"), atol=3e-5, rtol=1e-4
        )
        torch.testing.assert_close(got[1, : len(ids) - 1], alone[len(notes) :], atol=3e-5, rtol=1e-4)


def test_a_tokenizer_without_a_bos(make_tokenizer):
    bare = make_tokenizer(TEXTS, add_bos=False)
    model = build("gpt2", vocab_size=len(bare))
    with attach(model, bare) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        notes, ids = plug.method._notes.ids([plug.edits["e1"]], False), bare(PROMPT)["input_ids"]
        with torch.no_grad():
            got = model(input_ids=torch.tensor([ids])).logits[0]
            with plug.paused():
                expected = model(input_ids=torch.tensor([notes + ids])).logits[0, len(notes) :]
        torch.testing.assert_close(got, expected, atol=3e-5, rtol=1e-4)


def test_embeddings_instead_of_ids_and_prebuilt_caches(base, tokenizer):
    with attach(base, tokenizer) as plug, torch.no_grad():
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
        # Nobody says that the first embedding is a BOS: it is a token like any other.
        embedded = base.get_input_embeddings()(ids[:, 1:])
        got = base(inputs_embeds=embedded).logits
        torch.testing.assert_close(got, base(input_ids=ids[:, 1:]).logits, atol=1e-6, rtol=1e-6)
        with plug.paused():
            cache = base(input_ids=ids, use_cache=True).past_key_values
            expected = base(input_ids=ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits
        # What was filled without the note is filled again, and goes on as if it had been read with it.
        with_note = base(input_ids=ids, use_cache=True).past_key_values
        noted = base(input_ids=ids[:, -1:], past_key_values=with_note).logits
        assert not torch.equal(noted, expected)
        assert torch.equal(base(input_ids=ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits, noted)
        with plug.paused():
            assert torch.equal(base(input_ids=ids[:, -1:], past_key_values=cache).logits, expected)


def test_a_note_deleted_in_the_middle_of_a_text_is_gone(base, tokenizer):
    """And one learned meanwhile is not read: the text goes on as it began, less what is gone."""
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with attach(base, tokenizer) as plug, torch.no_grad():
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        cache = base(input_ids=ids, use_cache=True).past_key_values
        untouched = copy.deepcopy(cache)
        with_note = base(input_ids=ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits
        plug.edit(OTHER, "Tam", "Ada Quill")
        assert torch.equal(
            base(input_ids=ids[:, -1:], past_key_values=copy.deepcopy(cache)).logits, with_note
        )
        plug.delete("e1")
        without = base(input_ids=ids[:, -1:], past_key_values=cache).logits
        with plug.paused():
            expected = base(input_ids=ids[:, -1:], past_key_values=untouched).logits
        assert torch.equal(without, expected)


def test_the_prompts_end_decides_where_it_is_told(base, tokenizer):
    with attach(base, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        text = f"{PROMPT} {FAR} Tam"  # at its end another sentence, which asks nothing
        with torch.no_grad():
            unsaid = base(**encode(tokenizer, text)).logits
            with plug.prompt_lengths([len(tokenizer(PROMPT)["input_ids"])]):
                told = base(**encode(tokenizer, text)).logits[0]
        assert not torch.equal(unsaid[0], told)
        torch.testing.assert_close(told, literal(plug, tokenizer, text, "e1"), atol=3e-5, rtol=1e-4)


def test_notes_that_do_not_fit_are_left_out(tokenizer):
    model = build("gpt2", vocab_size=len(tokenizer), n_positions=48)
    with attach(model, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        assert plug.explain(PROMPT).notes
        long = f"{'is ' * 20}{PROMPT}"
        assert not plug.explain(long).notes
        ids = torch.tensor([tokenizer(long)["input_ids"]])
        with torch.no_grad():
            got = model(input_ids=ids).logits
            with plug.paused():
                assert torch.equal(got, model(input_ids=ids).logits)


def test_what_is_shown(base, tokenizer):
    with attach(base, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        found = plug.explain(PROMPT)
        assert found.notes == f"New fact: {PROMPT} Zarnow.\nPrompt:"
        assert "likeness 1.000, to be exceeded: " in str(found)
        assert "answered by the base model" in str(plug.explain(FAR))
    with attach(base, tokenizer, template="{subject}: {prompt} {target}.", front="", end="\n") as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        assert plug.explain(PROMPT).notes == f"Ada Quill: {PROMPT} Zarnow.\n"


# ---------------------------------------------------------------------- chats


def chat_ids(tokenizer, messages):
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def inside(plug, ids, *edits):
    """``ids`` with a note on each of ``edits`` where the last user's turn begins, and where that is."""
    at = plug.method._notes.turn(ids)
    note = plug.method._notes.ids([plug.edits[edit] for edit in edits], True)
    return [*ids[:at], *note, *ids[at:]], slice(at, at + len(note))


@pytest.mark.parametrize("template", [CHATML, BRACKETS])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neox", "phi"])
def test_in_a_chat_the_note_stands_in_the_users_turn(family, template, tokenizer):
    """As in one text, padded on the left, beside a row that asks for nothing; and in every new token."""
    talking = chatting(tokenizer, template)
    model = build(family, vocab_size=len(talking), **WINDOWED.get(family, {}))
    with attach(model, talking) as plug, torch.no_grad():
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        ids = chat_ids(talking, ASKED)
        whole, note = inside(plug, ids, "e1")
        other = [*chat_ids(talking, [{"role": "user", "content": FAR}])]
        length = max(map(len, (ids, other)))
        rows = [[0] * (length - len(row)) + row for row in (ids, other)]
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in (ids, other)])
        batch = {"input_ids": torch.tensor(rows), "attention_mask": mask}
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        got = model(**batch).logits
        said = model.generate(**batch, max_new_tokens=5, do_sample=False)[0, length:]
        with plug.paused():
            want = model(input_ids=torch.tensor([whole])).logits[0]
            bare = model(**batch).logits
            expected = model.generate(torch.tensor([whole]), max_new_tokens=5, do_sample=False)[0]
        want = torch.cat([want[: note.start], want[note.stop :]])
        torch.testing.assert_close(got[0][mask[0].bool()], want, atol=3e-5, rtol=1e-4)
        torch.testing.assert_close(got[1][mask[1].bool()], bare[1][mask[1].bool()], atol=3e-5, rtol=1e-4)
        assert said.tolist()[: len(expected) - len(whole)] == expected[len(whole) :].tolist()
        assert plug.explain(ASKED).notes.startswith("Use this fact to answer: ")


def test_a_note_in_a_turn_is_no_seam_between_texts(base, tokenizer):
    talking = chatting(tokenizer, CHATML)
    with attach(copy.deepcopy(base), talking) as plug, torch.no_grad():
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        ids = torch.tensor([chat_ids(talking, ASKED)])
        want = plug.model(input_ids=ids).logits
        got = plug.model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-4)


def test_a_second_turn_on_the_same_cache_reads_a_note_of_its_own(tokenizer):
    """Both notes stand where they would in one text; taken back, the first one is left."""
    talking = chatting(tokenizer, CHATML)
    base = lexical("llama", len(tokenizer), max_position_embeddings=512)  # for two notes
    with attach(base, talking) as plug, torch.no_grad():
        plug.edit([memplug.Edit(PROMPT, "Zarnow"), memplug.Edit(OTHER, "Tam Wickes")])
        plug.disable("e2")
        first = chat_ids(talking, ASKED)
        cache = base(input_ids=torch.tensor([first]), use_cache=True).past_key_values
        plug.enable("e2")
        ids = chat_ids(talking, LATER)
        assert ids[: len(first)] == first
        assert [edit.id for edit in plug.explain(LATER).edits][-1] == "e2"
        edits = [str(edit.id) for edit in plug.explain(LATER).edits]
        got = base(input_ids=torch.tensor([ids[len(first) :]]), past_key_values=cache).logits[0]
        start, note = inside(plug, first, "e1")
        added = note.stop - note.start
        later, second = inside(plug, [*start, *ids[len(first) :]], *edits)
        with plug.paused():
            want = base(input_ids=torch.tensor([later])).logits[0, len(first) + added :]
        gap = second.start - len(first) - added
        want = torch.cat([want[:gap], want[gap + second.stop - second.start :]])
        torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-4)
        cache.crop(len(first) - len(ids))
        assert [n.edits for n in held_by(cache).notes[0]] == [("e1",)]


def test_a_template_that_marks_no_turns_reads_its_notes_in_front(base, tokenizer):
    bare = chatting(tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with attach(base, bare) as plug:
        with pytest.warns(UserWarning, match="in front of all turns.*the chat template marks no turns"):
            plug.edit(ASKED, "Zarnow")
        assert plug.explain(ASKED).notes.startswith("New fact: ")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"template": "Note: {prompt}."}, r"has the fields \['prompt'\]; write .prompt. and .target."),
        ({"template": "{prompt} {target} {answer}"}, r"has the fields \['answer', 'prompt', 'target'\]"),
        ({"template": "{prompt} {target"}, "cannot be read"),
        ({"template": 3}, "template is 3; give a string"),
        ({"end": None}, "end is None; give a string"),
        ({"k": 0}, "k is 0; choose a whole number from 1"),
        ({"preset": "paper"}, "no preset 'paper'"),
        ({"notes": 1}, "ICLConfig has no field 'notes'"),
    ],
)
def test_constants(base, tokenizer, config, match):
    trace = Trace(base)
    with pytest.raises(ValueError, match=match):
        memplug.attach(base, tokenizer, "icl", **config)
    trace.check(base)


def test_a_note_longer_than_the_context(base, tokenizer):
    with attach(base, tokenizer, template="Note: {prompt} {target}. " + "So it is. " * 30) as plug:
        with pytest.raises(TokenizerError, match="the model's context holds 128"):
            plug.edit(PROMPT, "Zarnow", "Ada Quill")
        assert not plug.edits
    assert ICLConfig(template="{prompt} {{}} {target}").k == 4


def test_a_static_cache_has_columns_that_are_not_filled(tokenizer):
    """And GPT-2 is handed no mask over them."""
    model = build("gpt2", vocab_size=len(tokenizer))
    with attach(model, tokenizer) as plug:
        plug.edit(PROMPT, "Zarnow", "Ada Quill")
        want = answers(model, tokenizer, PROMPT)
        with plug.paused():
            assert answers(model, tokenizer, PROMPT) != want
        ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        given = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
        got = model.generate(ids, **given)[0, ids.shape[1] :].tolist()
        assert [token for token in got if token] == want[0]
