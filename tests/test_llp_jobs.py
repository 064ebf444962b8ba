"""What values are trained on: the model's own restatements count only where they ask for the edited fact."""

from __future__ import annotations

import memplug
from memplug.contexts import Sampled
from memplug.methods.llp import LLPConfig
from memplug.methods.llp.entries import Entry
from memplug.methods.llp.jobs import _verified, jobs_for
from memplug.methods.llp.rows import build_rows


class Answers:
    """Stands for a model that answers each prompt as told."""

    def __init__(self, **answers):
        self.answers = answers

    def encode(self, text):
        return [text]

    def generate(self, starts, tokens):
        return [[self.answers[start[0].split()[-1]]] for start in starts]

    def decode(self, ids):
        return ids[0]


def test_only_fronts_that_the_model_completes_with_its_answer_are_kept():
    text = Answers(one="Oslo, of course", two="Rome", three="oslo")
    said = [Sampled(["kept"], ["front one", "front two"]), Sampled([], []), Sampled([], ["front three"])]
    assert _verified(text, said, ["Oslo", "Oslo", "OSLO"]) == [
        Sampled(["kept"], ["front one"]),
        Sampled([], []),
        Sampled([], ["front three"]),
    ]


def drafts(edits):
    return [Entry(str(edit.subject), {str(i): edit}) for i, edit in enumerate(edits)]


def test_the_embedded_model_restates_facts_in_its_own_words():
    model, tokenizer = memplug.world.load()
    edits = [case.edit for case in memplug.world.cases(8, seed=5)]
    config = LLPConfig(think_layers=(0, 1), recall_layer=2)
    with memplug.attach(model, tokenizer, config) as plug:
        host = plug.method._host
        jobs = jobs_for(host.text, config, drafts(edits))
        fronts = [front for job in jobs for some in job.restated for front in some]
        assert len(fronts) >= 4
        assert all(len(some) <= config.n_restatements for job in jobs for some in job.restated)
        for job in jobs:
            for some in job.restated:
                for front in some:
                    assert job.subject in front
                    assert not front.startswith(job.edits[0].prompt)
        none = jobs_for(
            host.text, LLPConfig(think_layers=(0, 1), recall_layer=2, n_restatements=0), drafts(edits)
        )
        assert not any(some for job in none for some in job.restated)

        with_, without = (build_rows(host, plug.method._recall, config, some, []) for some in (jobs, none))
        assert len(with_.job) - len(without.job) == len(fronts)
