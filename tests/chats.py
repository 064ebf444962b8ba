"""Chat templates, and tokenizers that have them, for tests."""

from __future__ import annotations

import copy
from typing import Any

BORN = "Where was Ada Quill born?"
SYSTEM = {"role": "system", "content": "Answer Tam in one word."}
ASKED = {"role": "user", "content": BORN}
EARLIER = [
    {"role": "user", "content": "Who taught Ada Quill?"},
    {"role": "assistant", "content": "Tam Wickes did."},
]

CHATML = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""The usual form: nothing between the header and what is said."""

BRACKETS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' and not loop.first %}{{ raise_exception('a system turn comes first') }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
"""With the BOS in the template, as Llama 2: turns are trimmed, a space stands before an answer."""

SHOUTING = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
"""Rewrites what it is given."""


def chatting(tokenizer: Any, template: str = CHATML) -> Any:
    """A copy of the tokenizer that has the template."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    return made
