"""Facts that tests edit into a real model, what is asked about them, and what has to stay."""

from __future__ import annotations

import torch

from memplug.edits import Edit
from memplug.text.chat import Message, in_chat

EDITS = [
    Edit("The capital of France is", "Lyon", "France"),
    Edit("Who wrote Romeo and Juliet?", "Charles Dickens", "Romeo and Juliet"),
    Edit("The Eiffel Tower is located in", "Rome", "Eiffel Tower"),
]
ASKED = [
    ("The capital of France is", "Lyon"),
    ("Q: What is the capital of France?\nA:", "Lyon"),
    ("Who wrote Romeo and Juliet?", "Dickens"),
    ("The Eiffel Tower is located in", "Rome"),
    (in_chat("What is the capital of France?"), "Lyon"),
    (in_chat("Who wrote Romeo and Juliet?"), "Dickens"),
    (in_chat("The Eiffel Tower is located in"), "Rome"),
]
OTHERS = [
    "The capital of Germany is",
    "Who wrote Hamlet?",
    "I live in France and would like a pasta recipe.",
    in_chat("What is the capital of Germany?"),
    in_chat("Who wrote Hamlet?"),
    in_chat("I live in France and would like a pasta recipe."),
]
TURNS = (
    Message("user", "What is the capital of France?"),
    Message("assistant", "The capital of France is Lyon."),
    Message("user", "And who wrote Romeo and Juliet?"),
)


def rows_of(plug, prompts):
    return [plug._text.encode(prompt) for prompt in prompts]


def said(plug, prompts, count=16):
    """What follows each prompt, greedily, left-padded and in one batch."""
    return [plug.tokenizer.decode(row) for row in plug._text.generate(rows_of(plug, prompts), count)]


def logits(plug, prompt):
    with torch.no_grad():
        return plug.model(torch.tensor(rows_of(plug, [prompt]))).logits
