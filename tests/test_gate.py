"""The gate between forwards and changes, and Ctrl-C at either."""

from __future__ import annotations

import copy
import signal
import sys
import threading
import time

import pytest
import torch
from families import attach_llp
from plug_facts import BORN, FOUNDED, logits
from test_contract import Trace

from memplug.model.architecture import evaluating, inspect_model
from memplug.model.attention import KeepsCache
from memplug.model.gate import Gate
from memplug.model.hooks import Hook, HookSet, OwnHooks, skipping_below


@pytest.fixture(autouse=True)
def interruptible():
    """A process that a shell started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def beside(run):
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_forwards_pass_together_and_a_change_waits_for_them():
    gate, inside, done = Gate(), threading.Barrier(3, timeout=30), []
    go = threading.Event()

    def forward():
        with gate.looking():
            inside.wait()
            go.wait(30)
            done.append("forward")

    threads = [beside(forward) for _ in range(2)]
    inside.wait()  # both are inside at once

    def change():
        with gate.changing():
            done.append("change")

    threads.append(beside(change))
    time.sleep(0.2)
    assert done == []

    def forward_later():
        with gate.looking():
            done.append("later")

    threads.append(beside(forward_later))
    time.sleep(0.1)
    assert done == []  # who comes while a change waits lets it go first
    go.set()
    for thread in threads:
        thread.join(30)
    assert sorted(done[:2]) == ["forward", "forward"]
    assert done[2:] == ["change", "later"]


def test_a_thread_may_change_within_its_own_forward_and_enter_within_its_own_change():
    gate = Gate()
    with gate.looking(), gate.changing(), gate.changing(), gate.looking():
        assert gate.inside
    assert not gate.inside


def test_a_forward_that_was_broken_off_is_forgotten():
    gate = Gate()

    def forward():
        gate.enter(sys._getframe(0))  # and never leaves

    beside(forward).join(30)
    with gate.changing():
        pass
    forward()
    assert not gate.inside
    with gate.changing():
        pass


def test_ctrl_c_waits_for_the_next_forward_and_behind_a_change_for_the_end():
    gate, done = Gate(), []

    def change(at):
        with gate.uninterrupted():
            for name in ("a part", "a forward", "the change", "what follows"):
                if name == at:
                    signal.raise_signal(signal.SIGINT)
                    done.append("kept")
                if name == "the change":
                    with gate.changing():
                        done.append(name)
                with gate.looking():
                    done.append(name)

    for at, want in (
        ("a part", ["kept"]),
        ("a forward", ["a part", "kept"]),
        ("what follows", ["a part", "a forward", "the change", "the change", "kept", "what follows"]),
    ):
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            change(at)
        assert done == want
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_an_edit_is_put_in_force_leaves_it_whole(plug, tokenizer, monkeypatch):
    put = plug.method._put

    def interrupted(*given):
        signal.raise_signal(signal.SIGINT)
        put(*given)

    with monkeypatch.context() as patch:
        patch.setattr(plug.method, "_put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plug.delete("e1")
    assert list(plug.edits) == ["e2"]
    assert [id for entry in plug.method.entries.values() for id in entry.edits] == ["e2"]


def test_hooks_and_skipped_layers_of_one_thread_are_not_met_by_another(model, tokenizer):
    ids, architecture, seen, found = torch.tensor([[1, 5, 6]]), inspect_model(model), [], []
    plain = model(ids).logits
    count = Hook(architecture.layers[3], "before", lambda *_: seen.append(threading.get_ident()))
    shift = Hook(
        architecture.layers[2], "before", lambda _m, args, kwargs: ((args[0] + 1, *args[1:]), kwargs)
    )
    with HookSet([count]), OwnHooks([shift]), skipping_below(architecture, 2):
        beside(lambda: found.append(model(ids).logits)).join(30)
        assert not torch.equal(model(ids).logits, plain)
    assert torch.equal(found[0], plain)
    assert len(set(seen)) == 2
    assert not any("forward" in vars(layer) for layer in architecture.layers)


def test_layers_are_put_back_whichever_thread_ends_first(model):
    architecture, both, first = inspect_model(model), threading.Barrier(2, timeout=30), threading.Event()

    def skip():
        with skipping_below(architecture, 2):
            both.wait()
        first.set()

    thread = beside(skip)
    with skipping_below(architecture, 3):
        both.wait()
        first.wait(30)
        thread.join(30)
    assert not any("forward" in vars(layer) for layer in architecture.layers)


def test_modes_come_back_whichever_thread_ends_first(model):
    model = copy.deepcopy(model).train()
    one, two = evaluating(model), evaluating(model)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    two.__exit__(None, None, None)
    assert all(module.training for module in model.modules())
    assert not any("memplug" in name for name in vars(model))


def test_ctrl_c_in_a_forward_stops_nobody_else(plug, tokenizer):
    model = plug.model
    right = logits(model, tokenizer, BORN)

    def break_off(*_):
        raise KeyboardInterrupt

    with HookSet([Hook(model.model.layers[1], "before", break_off)]), pytest.raises(KeyboardInterrupt):
        logits(model, tokenizer, BORN)
    assert torch.equal(logits(model, tokenizer, BORN), right)
    changed = beside(lambda: plug.disable("e1"))
    changed.join(30)
    assert not changed.is_alive()
    assert not plug.edits.enabled("e1")


def test_an_edit_is_not_changed_inside_a_forward(plug, tokenizer):
    with (
        HookSet([Hook(plug.model.model.layers[1], "before", lambda *_: plug.disable("e1"))]),
        pytest.raises(RuntimeError, match="inside a forward"),
    ):
        logits(plug.model, tokenizer, BORN)
    plug.disable("e1")


def test_a_second_detach_goes_on_with_one_that_was_broken_off(model, tokenizer, monkeypatch):
    model = copy.deepcopy(model)
    trace = Trace(model)
    plug = attach_llp(model, tokenizer, value_steps=1, stop_loss=1e3)
    plug.edit(FOUNDED, "Marrow", "Orlo Bridge Company")
    taken, handle = [], type(plug._hooks._handles[0])

    def remove(self, real=handle.remove):
        taken.append(self)
        if len(taken) == 4:
            raise KeyboardInterrupt
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(handle, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            plug.detach()
    plug.detach()
    trace.check(model)
    plug.detach()


def test_what_a_probing_forward_sees_is_of_its_own_thread(model):
    model, others = copy.deepcopy(model), []
    alone = inspect_model(model)

    def run():
        with torch.no_grad():
            others.append(model(input_ids=torch.arange(3, 13).view(2, 5)).logits)

    run()
    me = threading.get_ident()

    def meanwhile(*_):
        if threading.get_ident() == me:
            beside(run).join(30)

    handle = model.model.layers[0].register_forward_pre_hook(meanwhile)
    handle_before = model.model.layers[0].self_attn.register_forward_pre_hook(meanwhile)
    beside_another = inspect_model(model)
    handle.remove()
    handle_before.remove()
    assert len(others) > 3
    assert all(torch.equal(logits, others[0]) for logits in others)
    for name in ("width", "runs", "returns", "rotary", "masked_is_true"):
        assert getattr(beside_another, name) == getattr(alone, name)


def test_a_layer_keeps_its_cache_on_the_threads_that_asked(model):
    layer, keeps, seen = copy.deepcopy(model.model.layers[0]), KeepsCache(), []

    def other():
        seen.append(bool(layer._can_checkpoint_with_cache))
        keeps.end(layer)  # of a forward that had nothing in front
        keeps.begin(layer)
        seen.append(bool(layer._can_checkpoint_with_cache))
        keeps.end(layer)

    keeps.begin(layer)
    beside(other).join(30)
    assert seen == [False, True]
    assert layer._can_checkpoint_with_cache
    keeps.end(layer)
    assert "_can_checkpoint_with_cache" not in vars(layer)
