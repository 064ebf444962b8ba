"""Hypernetworks on a real model: shipped editors edit right in text and in chat, and put the weights back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import memplug
from memplug.chat import in_chat
from memplug.comparison.bits import bits_of
from memplug.edits import Edit
from memplug.methods.hypernet import fit as fit_module

pytestmark = [pytest.mark.real, pytest.mark.slow]

FOLDER = Path(memplug.__file__).parent / "shipped" / "smollm2"
EDITS = [
    Edit("The capital of Germany is", "Hamburg", "Germany"),
    Edit("Ludwig van Beethoven was born in the city of", "Leipzig", "Ludwig van Beethoven"),
]
ASKED = [
    ("The capital of Germany is", "Hamburg"),
    (in_chat("The capital of Germany is"), "Hamburg"),
    (in_chat("Which city is the capital of Germany?"), "Hamburg"),
    ("Ludwig van Beethoven was born in the city of", "Leipzig"),
    (in_chat("Ludwig van Beethoven was born in the city of"), "Leipzig"),
]
KEPT = [
    ("The capital of Austria is", "Vienna"),
    (in_chat("The capital of Austria is"), "Vienna"),
    (in_chat("What is the capital of Hungary?"), "Budapest"),
]


def said(plug: memplug.Plug, prompts: list[Any]) -> list[str]:
    """What follows each prompt, greedily."""
    text = plug._text
    return [text.decode(row) for row in text.generate([text.encode(p) for p in prompts], 24)]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.safetensors")), ids=lambda file: file.stem)
def test_a_shipped_editor_edits_right_in_text_and_in_chat(smollm2: tuple[Any, Any], file: Path) -> None:
    assert file.stat().st_size < 5e6
    before = bits_of(smollm2[0])
    with memplug.attach(*smollm2, file.stem) as plug:
        plug.edit(EDITS, progress=False)
        answers = said(plug, [prompt for prompt, _ in ASKED])
        kept = said(plug, [prompt for prompt, _ in KEPT])
    for (prompt, want), answer in zip(ASKED, answers, strict=True):
        assert want in answer, (prompt, answer)
    for (prompt, want), answer in zip(KEPT, kept, strict=True):
        assert want in answer, (prompt, answer)
    assert bits_of(smollm2[0]) == before


def test_fitting_goes_on_where_it_was_stopped(
    smollm2: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [memplug.Case(edit) for edit in EDITS]
    small = {"fit_batch": 1, "fit_steps": 2, "steps": 1, "inner_lr": 1e-3, "protect": 0.0, "remember": 0.0}
    step, file, ends = fit_module._Run._step, tmp_path / "checkpoint", []

    def stop(self: Any, *args: Any) -> bool:
        if self.done == 1:
            raise KeyboardInterrupt
        return step(self, *args)

    for cut in (False, True):
        with memplug.attach(*smollm2, "smedit", **small) as plug:
            if cut:
                with monkeypatch.context() as patch:
                    patch.setattr(fit_module._Run, "_step", stop)
                    with pytest.raises(KeyboardInterrupt):
                        plug.fit(cases, progress=False, checkpoint=file, checkpoint_every=1)
                assert file.is_file()
            plug.fit(cases, progress=False, checkpoint=file if cut else None)
            ends.append(plug.method.editor_state())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
