"""What the report calls things, and how each number is computed: the only place with such texts."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "COSTS",
    "FORMULAS",
    "GROUPS",
    "MEASURES",
    "MOMENTS",
    "PREFERENCES",
    "PROPERTIES",
    "Formula",
    "Term",
]


class Term(NamedTuple):
    """A key of the results, its heading, and one sentence on it."""

    key: str
    label: str
    meaning: str


class Formula(NamedTuple):
    """A number of the report: its name, its formula in plain text, and where it comes from."""

    label: str
    formula: str
    source: str


PROPERTIES = (
    Term("efficacy", "Efficacy", "the edit's own prompt is answered by the new answer"),
    Term("generalization", "Generalization", "rephrased prompts are answered by the new answer"),
    Term("specificity", "Specificity", "unrelated prompts are answered as the base model answers them"),
    Term("same_subject", "Same subject", "other facts about the edited subject are answered as before"),
    Term("portability", "Portability", "questions that follow from the edit get the answer that follows"),
    Term("specificity_gold", "Specificity, right answer", "unrelated prompts get the data set's answer"),
    Term("same_subject_gold", "Same subject, right answer", "other facts get the data set's answer"),
)

MEASURES = (
    Term("generated", "whole answer, generated", "the model's own answer is the expected one, whole"),
    Term("starts", "begins with, generated", "the model's own answer begins with the expected one"),
    Term("whole", "whole answer, teacher forced", "every expected token is the first choice"),
    Term("tokens", "tokens, teacher forced", "share of expected tokens that are the first choice"),
)

MOMENTS = (
    Term("final", "after all edits", "every edit scored when all had been made"),
    Term("immediate", "right after each batch", "every edit scored as soon as its own batch had been made"),
    Term("first", "earliest edits, after all edits", "the first edits (100 at most) when all had been made"),
)

GROUPS = (
    Term("efficacy", "edit", "should change"),
    Term("generalization", "rephrased", "should change"),
    Term("specificity", "unrelated", "should stay"),
    Term("same_subject", "same subject", "should stay"),
    Term("portability", "consequence", "should change"),
)

PREFERENCES = (
    Term("rome", "new answer likelier, whole sequence", "as ROME and MEMIT count it"),
    Term("rledit", "new answer likelier, position by position", "as RLEdit and HiEdit count it"),
)

COSTS = (
    Term("seconds_per_edit", "Time per edit", "wall-clock time of the edits over their number"),
    Term(
        "forward",
        "Forward",
        "a forward on texts that name no edited subject, over the bare model's in the same run",
    ),
    Term("decode", "Decoding", "a decoded token, over the bare model's in the same run"),
    Term("peak_host_bytes", "Host memory", "growth of the process's peak memory while editing"),
    Term("peak_device_bytes", "Device memory", "peak of allocated accelerator memory while editing"),
    Term(
        "forward_host_bytes",
        "Host memory, forward",
        "growth of the process's peak memory during that forward",
    ),
    Term("forward_device_bytes", "Device memory, forward", "peak of allocated accelerator memory during it"),
    Term("parameters", "Learned numbers", "numbers learned and held when all edits had been made"),
    Term("bytes_per_edit", "Bytes per edit", "size of the saved state over the number of edits"),
    Term("fit", "Fitting", "time to learn to edit, before the first edit"),
)

_FORCED = (
    "Teacher forced: the model reads the prompt x and the expected answer's own beginning y₁…yᵢ₋₁, and its "
    "first choice aᵢ = argmax p(· | x, y₁…yᵢ₋₁) is compared with yᵢ."
)
FORMULAS = (
    Formula("tokens, teacher forced", "1/n · Σᵢ [aᵢ = yᵢ]. " + _FORCED, "MEND, MALMEN, RLEdit, HiEdit, LLP"),
    Formula(
        "whole answer, teacher forced", "Πᵢ [aᵢ = yᵢ], with aᵢ as above.", "ELDER, GRACE, MELO (exact match)"
    ),
    Formula(
        "whole answer, generated",
        "1 if the greedily decoded answer, up to where the model itself stops, is the expected text (blanks "
        "at both ends aside); else 0.",
        "exact match of free generation",
    ),
    Formula(
        "begins with, generated",
        "1 if that answer begins with the expected text and no word goes on there; else 0. For models that "
        "were never taught to stop.",
        "prefix match of free generation",
    ),
    Formula(
        "Specificity, same subject",
        "The same four, with the base model's own answer as the expected one: 1/n · Σᵢ [aᵢ = aᵢ(base)], all "
        "of them equal, or the same generated text. The base model has 100 by definition; “begins with” is "
        "not asked. The columns “right answer” expect the data set's answer instead, which the base model "
        "need not know.",
        "agreement as in LLP; right answer as in MEND and RLEdit",
    ),
    Formula("perplexity", "exp(−1/n · Σᵢ ln p(yᵢ | x, y₁…yᵢ₋₁)) of the new answer; lower is better.", "LLP"),
    Formula(
        "new answer likelier, whole sequence",
        "[1/n Σᵢ ln p(newᵢ | x, new₁…newᵢ₋₁) > 1/m Σᵢ ln p(trueᵢ | x, true₁…trueᵢ₋₁)]; for neighbourhood "
        "prompts the other way round.",
        "ROME and MEMIT on CounterFact",
    ),
    Formula(
        "new answer likelier, position by position",
        "Over the common length m: 1/m · Σᵢ [p(newᵢ | x, new₁…newᵢ₋₁) > p(trueᵢ | x, new₁…newᵢ₋₁)]. Not "
        "comparable with the line above.",
        "RLEdit and HiEdit on CounterFact",
    ),
    Formula(
        "edited retention",
        "Efficacy, generalization and specificity of the first edits (100 at most) when all edits have been "
        "made. The curves ask about the first edits again and again on the way, and about as many of the "
        "latest: as many as had been made at the first point, 100 at most.",
        "GRACE, RLEdit, HiEdit",
    ),
    Formula(
        "held",
        "Σ min(before, after) / Σ before over all edits (or their rephrasings): 1 where the whole answer was "
        "right, before: after its own batch, after: when all edits had been made. What never took does not "
        "count.",
        "–",
    ),
    Formula(
        "general retention",
        "Share of items of a task that has nothing to do with the edits that are answered right.",
        "MEMIT, RLEdit, HiEdit",
    ),
    Formula(
        "harmonic mean",
        "3 / (1/efficacy + 1/generalization + 1/specificity), each after all edits; 0 if one of them is 0.",
        "score S of ROME and MEMIT",
    ),
    Formula(
        "one method, one seed",
        "A case's probes of one kind are averaged first, then the cases. The interval is a percentile "
        "bootstrap over cases (1,000 resamples).",
        "Efron 1979",
    ),
    Formula(
        "several seeds",
        "The mean over seeds of the seeds' means. The interval is a percentile bootstrap (1,000 resamples) "
        "over distinct cases: a case that came up under several seeds is drawn once, with all of its "
        "results. Where only the seeds' own intervals are at hand (base model, retention, general tasks), "
        "their half-widths are combined as of independent means, √(Σ h²)/S. “Seeds” "
        "gives the lowest and the highest seed's mean.",
        "Efron 1979",
    ),
    Formula(
        "forward, decoding",
        "Time with the edits in place over time of the bare model, measured in turns in the same process; "
        "1.00 is no overhead. The fastest of many turns counts. The timed text names no edited subject; "
        "where a method recalls an edit in it all the same, that is among its warnings. A star is given only "
        "where the ranges over the seeds do not overlap and, with a single seed, the costs differ by 3 % "
        "or more.",
        "–",
    ),
    Formula(
        "memory of a forward",
        "By how much the process's resident memory (looked at every millisecond), or what is allocated on "
        "the accelerators, grows at most while that forward is run, edits in place.",
        "–",
    ),
)
"""How each number is computed, in the order of the page."""
