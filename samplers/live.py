"""Progress in the terminal: a bar with NFE and tokens per second, and on request the canvas while it is decoded.

`LiveView` is an `on_step` of `samplers.loop.sample`. It writes to stderr, and writes nothing if stderr is not a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter, sleep

import torch
from jaxtyping import Bool, Int
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from dlm.observation import Observation
from samplers.loop import OnStep
from samplers.scores import Seen
from training.progress import Advance, nothing
from training.terminal import printable

MASK, FRESH, REOPENED = "░", "bold green", "bold red"
FRAME = 0.1  # seconds for which a displayed canvas stays, so that fast models can be watched
INTERVAL = 0.1  # seconds between two reads of the canvases, each of which makes a GPU wait; a screen shows no more


def paint(
    tokens: Int[Tensor, "position"],
    masked: Bool[Tensor, "position"],
    fresh: Bool[Tensor, "position"],
    decode: Callable[[list[int]], str],
    columns: int | None = None,
) -> Text:
    """Return one canvas as styled text: masks as shaded cells, tokens of the last step in green, positions that it opened again
    in red. columns: width of a board; None for text.
    """
    text = Text()
    kinds = list(zip(tokens.tolist(), masked.tolist(), fresh.tolist(), strict=True))
    start = 0
    for end in range(1, len(kinds) + 1):
        same = end < len(kinds) and kinds[end][1:] == kinds[start][1:] and columns is None
        if same:  # neighbours are decoded together: a character may span several tokens
            continue
        _, is_mask, is_fresh = kinds[start]
        piece = MASK * (end - start) if is_mask else printable(decode([token for token, _, _ in kinds[start:end]]))
        changed = REOPENED if is_mask else FRESH
        text.append(piece, changed if is_fresh else "dim" if is_mask else "")
        if columns is not None:
            text.append("\n" if end % columns == 0 else " ")
        start = end
    text.rstrip()
    return text


class LiveView:
    """Show the progress of a decoding: `with LiveView(total, decode) as view: sample(..., on_step=view.on_step)`, once per
    batch.

    Args:
        total: tokens to generate in all batches.
        decode: token ids to text, to show the first canvas of each batch. None: the bar only.

    With `decode`, every step is displayed for a moment and the last canvas stays on the screen.
    `on_step` is None if there is no terminal, so that decoding does no extra work.
    """

    def __init__(
        self,
        total: int,
        decode: Callable[[list[int]], str] | None = None,
        columns: int | None = None,
        quiet: bool = False,
        console: Console | None = None,
    ):
        self.console = console or Console(stderr=True)
        self.on_step = None if quiet or not self.console.is_terminal else self._on_step
        self.total, self.decode, self.columns = total, decode, columns
        self.written = 0  # in the batches before this one
        self.batch_masks = 0
        self.read_at = -INTERVAL
        self.paused = 0.0  # seconds of this batch in which decoding waited for the reader
        self.displayed: Int[Tensor, "position"] | None = (
            None  # the first canvas of the batch when it was last displayed
        )
        self.bar = Progress(
            TextColumn("{task.fields[nfe]:.0f} evaluations"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} tokens, {task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=total, nfe=0, speed=0)
        self.live = Live(self.bar, console=self.console, transient=decode is None)

    def __enter__(self) -> LiveView:
        self.started = perf_counter()
        if self.on_step is not None:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.on_step is not None:
            self.live.stop()

    def next_batch(self, canvases: Int[Tensor, "row position"], mask_id: int) -> None:
        """Announce the canvases of the next batch."""
        if self.on_step is None:
            return
        self.written += self.batch_masks
        self.batch_masks = int((canvases == mask_id).sum())
        self.displayed, self.paused = canvases[0].cpu(), 0.0

    def _on_step(self, observation: Observation | Seen, place: Int[Tensor, "active"]) -> None:
        """Display the current canvases, with one transfer from the device."""
        if self.decode is None and perf_counter() - self.read_at < INTERVAL:
            return
        figures = torch.stack(
            (observation.masked.sum(), observation.evaluations.max(), place[0], observation.row_step[0])
        )
        length = observation.tokens.shape[1]
        canvas = (observation.tokens[0], observation.masked[0]) if self.decode is not None else ()
        read = torch.cat((figures, *canvas)).cpu()
        open_positions, evaluations, first, step = read[:4].tolist()
        written = self.written + self.batch_masks - open_positions  # rows that left have no masks
        speed = written / (perf_counter() - self.started)
        self.bar.update(self.task, completed=written, nfe=evaluations, speed=speed)
        if self.decode is not None and first == 0:  # rows leave but keep their order
            tokens, masked = read[4 : 4 + length], read[4 + length :].bool()
            canvas = paint(tokens, masked, tokens != self.displayed, self.decode, self.columns)
            self.displayed = tokens
            self.live.update(Group(Panel(canvas, title=f"step {step}"), self.bar), refresh=True)
            sleep(FRAME)
            self.paused += FRAME
        self.read_at = perf_counter()


@contextmanager
def batch_progress(advance: Advance, samples: int, on_step: OnStep | None = None) -> Iterator[OnStep | None]:
    """Advance a bar in samples while a batch is decoded. An unfinished sample counts by its share of committed positions.

    Args:
        advance: of `training.progress.progress`; `nothing` where no bar is shown.
        samples: of the batch.
        on_step: is used where no bar is shown.

    Yields:
        The `on_step` of the decoding.
    """
    if advance is nothing:
        yield on_step
        return
    done, most, read_at = 0.0, 0, -INTERVAL

    def reach(value: float) -> None:
        nonlocal done
        advance(max(0.0, value - done))
        done = max(done, value)

    def step(observation: Observation | Seen, rows: Int[Tensor, "active"]) -> None:
        nonlocal most, read_at
        if most and perf_counter() - read_at < INTERVAL:
            return
        left, read_at = int(observation.masked.sum()), perf_counter()
        most = max(most, left)
        reach(samples * (1 - left / max(1, most)))

    yield step
    reach(float(samples))
