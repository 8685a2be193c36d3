"""The live view: what a canvas looks like, what the bar counts, and silence where there is no terminal."""

import io
import re

import torch
from rich.console import Console

import samplers.live
from dlm.checkpoints.table import build_model
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import Random
from samplers.live import FRESH, REOPENED, LiveView, batch_progress, paint
from samplers.loop import Strategy, sample
from samplers.scores import Seen
from training.progress import nothing


def letters(ids):
    return "".join("abcdefgh"[token] for token in ids)


def test_masks_are_shaded_and_fresh_tokens_coloured():
    tokens = torch.tensor([0, 1, 8, 8, 2])
    text = paint(tokens, tokens == 8, torch.tensor([False, False, False, False, True]), letters)
    assert text.plain == "ab░░c"
    assert [span.style for span in text.spans if (span.start, span.end) == (4, 5)] == [FRESH]


def test_positions_that_are_opened_again_are_red():
    tokens, fresh = torch.tensor([0, 8, 8]), torch.tensor([False, True, False])
    text = paint(tokens, tokens == 8, fresh, letters)
    assert [span.style for span in text.spans] == [REOPENED, "dim"]


def test_a_board_has_lines():
    tokens = torch.tensor([0, 8, 1, 2])
    assert paint(tokens, tokens == 8, tokens == 9, letters, columns=2).plain == "a ░\nb c"


def test_the_bar_counts_over_batches_and_shows_the_first_canvas(monkeypatch):
    monkeypatch.setattr(samplers.live, "INTERVAL", 0.0)
    shape = {"hidden_size": 16, "n_blocks": 1, "n_heads": 1, "length": 4, "dropout": 0.0}
    noise = {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}
    model, _ = build_model({"tokens": 8, "model": shape, "noise": noise}, "float32", None)
    environment, strategy = UnmaskingEnvironment(model.eval(), DecodeOptions(steps=2)), Strategy(Random(), TokenRule())
    screen, counts = io.StringIO(), []
    canvases = torch.tensor([[8, 0, 0, 0], [8, 8, 8, 8]])  # the first row leaves a step before the second
    console = Console(file=screen, force_terminal=True, width=100)
    with LiveView(10, letters, console=console) as view:

        def on_step(observation, place):
            view.on_step(observation, place)
            counts.append((view.bar.tasks[0].completed, view.bar.tasks[0].fields["nfe"]))

        for _ in range(2):
            view.next_batch(canvases, model.mask_id)
            sample(environment, strategy, Prompts(canvases), on_step=on_step)
        assert view.bar.tasks[0].fields["speed"] > 0
    assert counts == [(3, 1), (5, 2), (8, 1), (10, 2)]
    assert "tokens/s" in screen.getvalue() and "step 1" in screen.getvalue()


def test_steps_that_no_screen_would_show_are_not_read(monkeypatch):
    """The second step comes at once. It has no values, so that a read of it would fail: a GPU would wait for one."""
    monkeypatch.setattr(samplers.live, "INTERVAL", 1e9)
    step = Seen(torch.tensor([[0, 8]]), torch.tensor([[False, True]]), torch.tensor([1]), torch.tensor([1]))
    with LiveView(2, console=Console(file=io.StringIO(), force_terminal=True)) as view:
        view.next_batch(torch.full((1, 2), 8), 8)
        view.on_step(step, torch.tensor([0]))
        assert view.bar.tasks[0].completed == 1
        canvas, number = torch.empty(1, 2, device="meta").long(), torch.empty(1, device="meta").long()
        view.on_step(Seen(canvas, canvas > 0, number, number), number)
        assert view.bar.tasks[0].completed == 1


def test_silent_without_a_terminal_or_when_told():
    pipe, terminal = io.StringIO(), io.StringIO()
    told = LiveView(1, quiet=True, console=Console(file=terminal, force_terminal=True))
    for view in (LiveView(1, console=Console(file=pipe)), told):
        with view:
            assert view.on_step is None
    assert pipe.getvalue() == terminal.getvalue() == ""


def test_a_canvas_is_displayed_long_enough_to_read_and_the_last_one_stays(monkeypatch):
    waits = []
    monkeypatch.setattr(samplers.live, "sleep", waits.append)
    screen = io.StringIO()
    with LiveView(2, letters, console=Console(file=screen, force_terminal=True, width=60)) as view:
        view.next_batch(torch.full((1, 2), 8), 8)
        for number, tokens in enumerate(([[0, 8]], [[0, 1]]), 1):
            seen = Seen(torch.tensor(tokens), torch.tensor(tokens) == 8, torch.tensor([number]), torch.tensor([number]))
            view.on_step(seen, torch.tensor([0]))
    assert waits == [samplers.live.FRAME] * 2 and view.paused == 2 * samplers.live.FRAME
    last = screen.getvalue().rpartition("step 2")[2]
    assert "ab" in re.sub(r"\x1b\[[\d;]*m", "", last) and "\x1b[2K" not in last  # not erased


def test_a_bar_in_samples_advances_while_a_batch_is_decoded_and_is_full_at_its_end(monkeypatch):
    monkeypatch.setattr(samplers.live, "INTERVAL", 0.0)
    advanced, rows = [], torch.arange(16).view(8, 2)
    with batch_progress(advanced.append, 8) as step:
        for masks in (16, 12, 4, 8):  # reopened positions move nothing back
            seen = Seen(rows, rows < masks, torch.ones(8, dtype=torch.long), torch.ones(8, dtype=torch.long))
            step(seen, torch.arange(8))
    assert advanced == [0, 2, 4, 0, 2] and sum(advanced) == 8
    own = lambda observation, rows: None
    with batch_progress(nothing, 8, own) as step:
        assert step is own
