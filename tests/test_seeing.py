"""Models that see: edits hold where a question asks for them, beside an image too, and no image asks."""

from __future__ import annotations

import pytest
import torch
from chats import CHATML, chatting
from seeing import KINDS, around, build, image, inputs
from torch import nn

import memplug
from benchmarks.every_model import tiny
from benchmarks.every_model.promises import CONSTANTS, OTHER, PROMPT, SUBJECT, TARGET, TEXTS, attempt
from memplug.edits import Case, Edit, Probe
from memplug.model.architecture import UnsupportedModelError, inspect_model
from memplug.model.hooks import Hook, HookSet

CASE = Case(
    Edit("Who founded the Orlo Bridge Company?", "Tam Wickes", "Orlo Bridge Company"),
    ("Tell me who founded the Orlo Bridge Company.",),
    (Probe("What is the capital of Vestland?", "Marrow"),),
)
WEIGHTS = {
    "finetune": CONSTANTS["finetune"],
    "rledit": {"rank": 4, "fit_steps": 2, "fit_batch": 2, "trajectory": (1, 2), "inner_lr": 0.01},
    "memit": {
        "covariance": TEXTS, "n_prefixes": 1, "prefix_tokens": 4, "steps": 10, "guard_every": 0,
        "max_change": 1e3, "covariance_weight": 100.0,
    },
}  # fmt: skip
PLACES = {"before": ("", PROMPT), "behind": (PROMPT, ""), "between": ("Where was", " Ada Quill born?")}
QUIET = {"before": ("", OTHER), "behind": (OTHER, ""), "alone": ("", "")}


@pytest.fixture(scope="module")
def made():
    return tiny.tokenizer(TEXTS)


@pytest.fixture(scope="module")
def models(made):
    built = {}

    def get(kind):
        if kind not in built:
            built[kind] = build(kind, len(made) + 8)
        return built[kind]

    return get


@torch.no_grad()
def logits(model, given):
    return model(**given).logits


def prompts(model, kind, made, places):
    return {name: inputs(model, kind, around(model, kind, made, *texts)) for name, texts in places.items()}


def of_text(made, text=PROMPT):
    out = made([text], return_tensors="pt")
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}


@pytest.mark.parametrize("kind", [*KINDS, "mllama"])
def test_a_vision_tower_is_never_taken_for_the_decoder(kind, models):
    """Both have four layers."""
    model = models(kind)
    architecture = inspect_model(model)
    ran = []
    hooks = [Hook(layer, "before", lambda *_: ran.append(True)) for layer in architecture.layers]
    towers = [m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and "vis" in name]
    assert any(len(tower) == len(architecture.layers) for tower in towers)
    assert not {id(layer) for tower in towers for layer in tower} & {
        id(layer) for layer in architecture.layers
    }
    with HookSet(hooks):
        architecture.decoder(input_ids=torch.tensor([[5, 6, 7]]))
    assert ran


@pytest.mark.parametrize("method", ["llp", "elder", "grace", "icl"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_beside_an_image(kind, method, models, made):
    """It speaks at the end of the question, or of an image behind it; an image and other questions: never."""
    model = models(kind)
    asked, quiet = (prompts(model, kind, made, places) for places in (PLACES, QUIET))
    before = {name: logits(model, given) for name, given in asked.items()}
    bare = {name: logits(model, given) for name, given in quiet.items()}
    with memplug.attach(model, made, method, **CONSTANTS[method]) as plug:
        plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
        for name, given in quiet.items():
            assert torch.equal(logits(model, given), bare[name]), name
        for name, given in asked.items():
            apart = (logits(model, given) - before[name]).abs().amax(-1)[0]
            assert apart[-1] > 0.1, name
            named = int((given["input_ids"][0] != model.config.image_token_id).nonzero()[1])
            assert method == "icl" or apart[:named].max() < 1e-4, name
        other = asked["before"] | image(kind, 1)
        with plug.paused():
            seen = logits(model, other)
        assert not torch.equal(seen[:, -1], before["before"][:, -1])  # the image counts
        assert not torch.allclose(logits(model, other)[:, -1], seen[:, -1], atol=0.1)
    assert all(torch.equal(logits(model, given), before[name]) for name, given in asked.items())


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
def test_an_answer_beside_an_image(kind, models, made):
    """With and without a cache; to a random model the image is noise, so the edit has to be learned well."""
    model = models(kind)
    given = inputs(model, kind, around(model, kind, made, *PLACES["before"]))
    with memplug.attach(model, made, "elder", **CONSTANTS["elder"] | {"lr": 0.05}) as plug:
        plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
        for settings in ({}, {"use_cache": False}):
            out = model.generate(
                **given, max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=2, **settings
            )
            assert made.decode(out[0, given["input_ids"].shape[1] :]).strip().startswith(TARGET)


@pytest.mark.parametrize("method", ["llp", "icl"])
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "gemma3"])
def test_rows_with_an_image_and_without(kind, method, models, made):
    """Together, padded on the left, as alone."""
    model = models(kind)
    rows = [around(model, kind, made, *PLACES["before"]), made(PROMPT)["input_ids"]]
    seeing = inputs(model, kind, rows[0])
    ids = torch.tensor([rows[0], [0] * (len(rows[0]) - len(rows[1])) + rows[1]])
    types = {name: torch.cat([kinds, 0 * kinds]) for name, kinds in seeing.items() if "type_ids" in name}
    given = seeing | types | {"input_ids": ids, "attention_mask": (ids != 0).long()}
    with memplug.attach(model, made, method, **CONSTANTS[method]) as plug:
        plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
        got = logits(model, given)[:, -1]
        want = torch.cat([logits(model, one)[:, -1] for one in (seeing, of_text(made))])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "smolvlm"])
def test_text_alone_keeps_every_promise(kind, models, made):
    methods = ("llp", "elder", "grace", "icl", "finetune")
    for method, verdict in zip(methods, attempt(models(kind), made, methods), strict=True):
        assert verdict.kind in ("exact", "not learned"), (method, verdict)


@pytest.mark.parametrize("method", WEIGHTS)
@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "idefics3"])
def test_an_edit_in_the_weights_is_seen_beside_an_image(kind, method, models, made):
    model = models(kind)
    given = [of_text(made), inputs(model, kind, around(model, kind, made, *PLACES["before"]))]
    bare = [logits(model, one) for one in given]
    first = made(" " + TARGET, add_special_tokens=False)["input_ids"][0]
    with memplug.attach(model, made, method, **WEIGHTS[method]) as plug:
        if method == "rledit":
            plug.fit([CASE, CASE], progress=False)
        plug.edit(PROMPT, TARGET, SUBJECT, progress=False)
        edited = [logits(model, one) for one in given]
        chosen = [out[0, -1].log_softmax(-1)[first] for out in (bare[0], edited[0])]
        assert chosen[1] > chosen[0]
        assert not torch.equal(edited[1], bare[1])
    assert all(torch.equal(logits(model, one), out) for one, out in zip(given, bare, strict=True))


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_note_is_read_in_front_of_an_image(kind, chat, models, made):
    """As in one text; also for a later turn, since what stands before it is not read again with the image."""
    model = models(kind)
    texts = PLACES["before"]
    if chat:
        made = chatting(made, CHATML)
        turns = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "Tam"}]
        asked = [{"role": "user", "content": PROMPT}]
        texts = [made.apply_chat_template(said, tokenize=False) for said in (turns, asked)]
    row = around(model, kind, made, texts[0], texts[1] + "<|assistant|>\n" * chat)
    with memplug.attach(model, made, "icl") as plug:
        plug.edit(PROMPT, TARGET, SUBJECT)
        note = plug.method._notes.ids([plug.edits["e1"]], False)
        got = logits(model, inputs(model, kind, row))[0, 1:]
        with plug.paused():
            want = logits(model, inputs(model, kind, [*row[:1], *note, *row[1:]]))[0, -len(got) :]
            bare = logits(model, inputs(model, kind, row))[0, 1:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(got, bare, atol=0.1)


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_a_later_turn_on_the_cache_of_an_image(kind, models, made):
    """A note stands in front of an image, which the cache holds already and cannot be given again."""
    model, talking = models(kind), chatting(made, CHATML)
    row = around(model, kind, talking, "<|user|>\n", "Who is it?</s>\n<|assistant|>\n")
    asked = talking("Tam</s>\n<|user|>\n" + PROMPT + "</s>\n<|assistant|>\n", add_special_tokens=False)
    with memplug.attach(model, talking, "icl") as plug, torch.no_grad():
        plug.edit(PROMPT, TARGET, SUBJECT)
        first = model(**inputs(model, kind, row), use_cache=True)
        with pytest.raises(UnsupportedModelError, match="give the whole prompt at once, and a new cache"):
            model(input_ids=torch.tensor([asked["input_ids"]]), past_key_values=first.past_key_values)


def test_ids_are_known_where_a_model_counts_no_logits(made):
    model = build("video_llama_3", len(made) + 8)
    assert inspect_model(model).head is model


def test_a_model_that_needs_an_image_is_refused(made):
    with pytest.raises(UnsupportedModelError, match="Blip2.* does not run on text alone .*pixel_values"):
        inspect_model(build("blip-2", len(made) + 8))


def test_a_model_that_reads_prompts_both_ways_is_refused(made):
    with pytest.raises(UnsupportedModelError, match="PaliGemma.* reads prompts both ways"):
        inspect_model(build("paligemma", len(made) + 8))


@pytest.mark.parametrize("method", ["llp", "elder", "icl", "finetune"])
def test_layers_that_need_an_image_are_refused_by_name(method, models, made):
    with pytest.raises(UnsupportedModelError, match=r"CrossAttention|layers\.3 is not run on text alone"):
        memplug.attach(models("mllama"), made, method, **CONSTANTS[method]).edit(PROMPT, TARGET, SUBJECT)
