"""Text to tokens, the same way everywhere: prompts, answers, subjects, padding, sampled contexts.

Knows the tokenizer and nothing of editing. Prompts and targets carry no space at their ends; the
one between them is put here. A prompt that is messages goes through the tokenizer's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ..model.architecture import input_device
from ..model.layers import context_length
from .chat import Messages, Prompt, in_chat, question, show
from .rows import Batch, Pair, filled
from .sampling import PLAIN, TopKSampler
from .templates import ChatTemplateError, Rendered, chat_ids, has_template, render, turn_of
from .tokenizer import TokenizerError, apart, decoded, with_offsets
from .vocabulary import going_on

__all__ = ["Batch", "ChatTemplateError", "Pair", "Rendered", "Text", "TokenizerError", "TopKSampler", "apart"]


_CHARACTERS = 16  # a token; those of ordinary text have four


@dataclass(frozen=True)
class Text:
    """A tokenizer with the model it speaks for.

    Raises:
        TokenizerError: the tokenizer has more tokens than the model has embeddings.
    """

    model: Any
    tokenizer: Any

    def __post_init__(self) -> None:
        rows = self.model.get_input_embeddings().weight.shape[0]
        if len(self.tokenizer) > rows:
            raise TokenizerError(
                f"the tokenizer has {len(self.tokenizer)} tokens, the model only {rows} embeddings; load the "
                "model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer))"
            )

    @property
    def device(self) -> torch.device:
        """Where token ids belong."""
        return input_device(self.model)

    @property
    def begins(self) -> list[int]:
        """Ids with which the decoder of an encoder-decoder begins, as in ``generate``; none for a
        decoder-only model, which goes on with what it reads.

        Raises:
            TokenizerError: an encoder-decoder names none.
        """
        if not getattr(self.model.config, "is_encoder_decoder", False):
            return []
        settings = self.model.generation_config
        first = settings.decoder_start_token_id
        first = settings.bos_token_id if first is None else first
        if not isinstance(first, int):
            raise TokenizerError(
                f"{type(self.model).__name__} names no token with which its decoder begins; set "
                "model.generation_config.decoder_start_token_id (T5 begins with the padding token)"
            )
        return [first]

    @property
    def bos_id(self) -> int | None:
        """The id that starts a text, if the tokenizer puts one there."""
        bos: int | None = self.tokenizer.bos_token_id
        return bos if bos is not None and self.encode("a")[:1] == [bos] else None

    @property
    def eos_ids(self) -> list[int]:
        """The ids at which the model stops by itself; one that it has no embedding for is never said."""
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        eos = self.tokenizer.eos_token_id if eos is None else eos
        named = [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]
        known = self.model.get_input_embeddings().weight.shape[0]
        return [int(token) for token in named if 0 <= int(token) < known]

    @property
    def pad_id(self) -> int:
        """An id to fill with; it is always masked."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else (self.eos_ids or [0])[0]

    @property
    def max_length(self) -> int:
        """Tokens that fit into the model's context."""
        return context_length(self.model)

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return has_template(self.tokenizer)

    def chat_ids(self, messages: Messages) -> list[int]:
        """Ids of messages with the generation prompt, as ``apply_chat_template`` gives them.

        Raises:
            ChatTemplateError: there is no template, or it does not take these messages.
        """
        return chat_ids(self.tokenizer, messages)

    def encode(self, prompt: Prompt) -> list[int]:
        """Ids of a text with the tokenizer's special tokens in front, none behind; `chat_ids` of messages.

        What an encoder reads has the special tokens behind it as well: they end the source, not the answer.
        """
        if not isinstance(prompt, str):
            return self.chat_ids(prompt)
        return (
            list(self.tokenizer(prompt)["input_ids"])
            if self.begins
            else with_offsets(self.tokenizer, prompt)[0]
        )

    def row(self, prompt: Sequence[int], said: Sequence[int] = ()) -> Pair:
        """A prompt's ids, as `encode` gives them, with what is said to it."""
        begins = self.begins
        if begins:
            return Pair([*begins, *said], len(begins), tuple(prompt))
        return Pair([*prompt, *said], len(prompt))

    def room(self, prompt: Sequence[int]) -> int:
        """New tokens that the model's context has room for, beside a prompt's ids."""
        return self.max_length - (len(self.begins) or len(prompt))

    def forms(self, prompt: Prompt) -> list[Prompt]:
        """The prompt and the other form in which the same is asked.

        A text also as one user turn, where there is a chat template; messages also as their question alone.
        """
        if isinstance(prompt, str):
            return [prompt, in_chat(prompt)] if self.has_chat else [prompt]
        return [prompt, question(prompt)]

    def rendered(self, prompt: Prompt, target: str | None = None) -> Rendered:
        """The string that a prompt is read as, with ``target`` behind it; `tokens` puts it into tokens.

        A text is followed by a space and the target; messages by the generation prompt and the target, with
        the blanks between them that the template itself puts before an answer (mostly none).

        Raises:
            ChatTemplateError: as for `chat_ids`; or the template rewrites the question.
        """
        if not isinstance(prompt, str):
            return render(self.tokenizer, prompt, target)
        space = "" if prompt[-1:].isspace() else " "
        return Rendered(prompt if target is None else prompt + space + target, True, 0, len(prompt))

    def tokens(self, rendered: Rendered) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a rendered prompt, and where in its text each of them begins and ends."""
        return with_offsets(self.tokenizer, rendered.text, rendered.special)

    def pair(self, prompt: Prompt, target: str, *, stop: bool = False) -> Pair:
        """Ids of ``prompt``, ``target`` behind it (see `rendered`), and the stop token where ``stop`` is set.

        The prompt's ids are those of the prompt alone (what a user's ``generate`` is given) wherever
        the tokenizer's ids of both together begin with them. An encoder-decoder's target is what the
        tokenizer makes of it as ``text_target`` (labels), without the end token; special tokens that it puts
        in front are said like the others.

        Raises:
            TokenizerError: the target adds no token, or the text is longer than the model's context.
            ChatTemplateError: as for `rendered`.
        """
        self.check_size(prompt, target)
        alone = self.encode(prompt)
        pair = self.row(alone, self._labels(target)) if self.begins else self._behind(alone, prompt, target)
        answer = pair.ids[pair.start :]
        # The space before it is no answer, nor is the token that a tokenizer begins labels with.
        if not (self.decode(answer) if self.begins else self.tokenizer.decode(answer).strip()):
            raise TokenizerError(
                f"the target {target!r} tokenizes to nothing; give it text the tokenizer knows"
            )
        for ids in (pair.ids, pair.source):
            self.check_length(ids, prompt)
        return pair._replace(ids=pair.ids + self._stop(prompt)) if stop else pair

    def _behind(self, alone: list[int], prompt: Prompt, target: str) -> Pair:
        """The target behind a prompt, whose ids alone are ``alone``."""
        rendered = self.rendered(prompt, target)
        ids, offsets = self.tokens(rendered)
        start = len(alone)
        if ids[:start] != alone:  # a token spans the seam: the first one that reaches into the target
            start = next((i for i, (_, end) in enumerate(offsets) if end > rendered.prompt_end), len(ids))
        return Pair(ids, start)

    def _labels(self, target: str) -> list[int]:
        """Ids of what a decoder says, without those that end it; ``generate`` may force the first one."""
        ids = list(self.tokenizer(text_target=target)["input_ids"])
        while ids and ids[-1] in self.tokenizer.all_special_ids:
            ids.pop()
        forced = self.model.generation_config.forced_bos_token_id
        return [forced, *ids] if isinstance(forced, int) and ids[:1] != [forced] else ids

    def _stop(self, prompt: Prompt) -> list[int]:
        """The token that ends an answer: in a chat the one that ends a turn, if the model stops at it."""
        ends = self.eos_ids
        if not isinstance(prompt, str) and len(ends) > 1:
            behind = self.tokenizer(turn_of(self.tokenizer).behind, add_special_tokens=False)["input_ids"]
            ends = [token for token in behind if token in ends] or ends
        return ends[:1]

    def going_on(self, width: int) -> Tensor:
        """BoolTensor [width], of each id whether it goes on a word before it; so does what is no token."""
        return F.pad(self._going_on, (0, width - len(self._going_on)), value=True)

    @cached_property
    def _going_on(self) -> Tensor:
        return going_on(self.tokenizer)

    def check_size(self, prompt: Prompt, target: str = "") -> None:
        """Raises TokenizerError where a text has more characters than can fit into the context.

        To be asked before a text is made into tokens, which takes half a minute for 10 million characters.
        """
        said = (prompt,) if isinstance(prompt, str) else tuple(message.content for message in prompt)
        size, most = len(target) + sum(map(len, said)), _CHARACTERS * self.max_length
        if size > most:
            raise TokenizerError(
                f"{show(prompt)[:60]!r}... with the answer {target[:60]!r} has {size} characters, more than "
                f"the {most} that are taken for a context of {self.max_length} tokens; shorten it"
            )

    def check_length(self, ids: Sequence[int], text: Prompt) -> None:
        """Raises TokenizerError where ``ids`` do not fit into the model's context."""
        if len(ids) >= self.max_length:
            raise TokenizerError(
                f"{show(text)[:60]!r}... is {len(ids)} tokens long, the model's context holds "
                f"{self.max_length}; shorten the prompt, or the answer that stands behind it"
            )

    def span(self, text: str, begin: int, end: int) -> tuple[list[int], range]:
        """Ids of ``text`` and the indices of the tokens that lie in ``text[begin:end]``.

        A token that reaches past the end (")" merged with "?") is left out unless it is all there is.

        Raises:
            TokenizerError: no token lies there.
        """
        return self._span(Rendered(text, True, 0, len(text)), begin, end)

    def asked_span(
        self, prompt: Prompt, begin: int, end: int, target: str | None = None
    ) -> tuple[list[int], range]:
        """Ids of ``prompt``, with ``target`` behind it, and the indices of the tokens that lie in
        ``question(prompt)[begin:end]``; otherwise as `span`."""
        rendered = self.rendered(prompt, target)
        at = rendered.question_begin
        return self._span(rendered, at + begin, at + end)

    def _span(self, rendered: Rendered, begin: int, end: int) -> tuple[list[int], range]:
        text = rendered.text
        ids, offsets = self.tokens(rendered)
        # A token's own leading space counts with it: " Lyon" lies in "Lyon".
        touching = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin and b > a]
        inside = [i for i in touching if offsets[i][1] <= end] or touching[:1]
        if not inside:
            raise TokenizerError(
                f"{text[begin:end]!r} in {text[:60]!r} leaves no token of its own; name a subject that the "
                "tokenizer knows"
            )
        return ids, range(inside[0], inside[-1] + 1)

    def batch(self, rows: Sequence[Pair | Sequence[int]]) -> Batch:
        """Right-padded tensors on the model's device, of ids or of pairs with their sources."""
        pairs = [row if isinstance(row, Pair) else Pair(list(row), 0) for row in rows]
        ids, mask = filled([pair.ids for pair in pairs], self.pad_id, self.device)
        sources = self.pad([pair.source for pair in pairs]) if pairs[0].source else ()
        return Batch(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), *sources)

    def pad(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask of prompts for ``generate``, LongTensors [B,T] on the model's device: padded on the
        left, where answers go on behind them, and on the right for an encoder, which may count positions."""
        return filled(prompts, self.pad_id, self.device, left=not self.begins)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        choose: LogitsProcessor | None = None,
    ) -> list[list[int]]:
        """What is said to prompts, rows of token ids, without the stop token; greedy unless ``choose`` is
        given. It ends where the context does.
        """
        # What is asked beside the user's own texts may be longer than the context: its end counts then.
        prompts = [row[-max(1, self.max_length - 1) :] for row in prompts]
        max_new_tokens = max(1, min(max_new_tokens, *map(self.room, prompts)))
        ids, mask = self.pad(prompts)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self.plain_settings(max_new_tokens),
            logits_processor=LogitsProcessorList([choose] if choose else []),
        )
        rows = []
        for row in out[:, len(self.begins) or ids.shape[1] :].tolist():
            # Rows end with a stop token only; the filling id may be an ordinary token of a model without one.
            end = next((i for i, token in enumerate(row) if token in self.eos_ids), len(row))
            rows.append(row[:end])
        return rows

    def plain_settings(self, max_new_tokens: int) -> GenerationConfig:
        """Settings of plain greedy decoding until the model stops by itself.

        ``generate`` fills what is left open from the model's own settings, so the neutral values of
        penalties, sampling and least lengths are spelled out.
        """
        # Only where the model has one: it would warn about a second limit.
        least = {"min_new_tokens": 0} if self.model.generation_config.min_new_tokens else {}
        ends = {"pad_token_id": self.pad_id, "eos_token_id": self.eos_ids or None}
        return GenerationConfig(max_new_tokens=max_new_tokens, **least, **PLAIN, **ends)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids as it is, special tokens left out, ends stripped."""
        return decoded(self.tokenizer, ids)
