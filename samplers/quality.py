"""The quality of committed tokens: how likely the token shown at a position is right, from three sources with one interface.

A masked model was never trained at committed positions. `SeenProbability` reads its raw output there, which LLaDA-like models
have learned by accident. `LeaveOut` masks some of the positions again and evaluates that canvas. `HeadQuality` asks a small
network on the model's hidden states (PRISM, 2510.01384; model/quality.py), which `python -m unmask train-quality` trains.

A rule that reads the model as well asks for the quality first: `log_quality` requests the outputs at the open positions in the
same evaluation.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.checkpoints.files import fetch
from dlm.draws import Draws
from dlm.fingerprint import KEY, fingerprint_of, mismatch, short_path, stored_fingerprint
from dlm.masked_lm import MaskedLM, groups
from dlm.observation import Observation, Readable, Response
from model.quality import QualityHead
from training.files import replacing_directory
from training.hub import ID
from training.storage import load_weights, save_weights
from training.stored import read_json_object
from training.usage import readable


@runtime_checkable
class Quality(Protocol):
    """How likely the token shown at a committed position is right: log-probability, <= 0, valid at `positions`."""

    def log_quality(
        self, observation: Observation, positions: Bool[Tensor, "row position"], draws: Draws
    ) -> Float[Tensor, "row position"]:
        """Return the log-probability that the token shown is right.

        Args:
            observation: the canvases.
            positions: committed positions.
            draws: for a source that draws.

        Returns:
            Values of at most 0, valid at `positions` and 0 elsewhere.
        """
        ...


def log_probs_seen(
    environment: Readable, hidden: Float[Tensor, "read width"], tokens: Int[Tensor, "read"]
) -> Float[Tensor, "read 2"]:
    """Return the log-probabilities, by the model's head, of these tokens and of the best tokens. Logits exist for a chunk of
    positions at a time."""
    found = []
    for states, shown in zip(hidden.split(environment.chunk), tokens.split(environment.chunk), strict=True):
        logits = environment.logits(states)
        both = torch.stack((logits.gather(1, shown.unsqueeze(1)).squeeze(1), logits.amax(1)), 1)
        found.append(both - logits.logsumexp(1, keepdim=True))
    return torch.cat(found).float().clamp(max=0.0) if found else hidden.new_zeros(0, 2)


def dense(
    positions: Bool[Tensor, "row position"], values: Float[Tensor, "read *rest"]
) -> Float[Tensor, "row position *rest"]:
    """Return the values at `positions`, row by row, and 0 elsewhere."""
    found = torch.zeros(*positions.shape, *values.shape[1:], device=positions.device)
    return found.index_put(positions.nonzero().unbind(1), values.float())


@dataclass
class SeenProbability:
    """log p(token shown) by the model's output at the position, which sees that token.

    Models that copy visible tokens by construction (MDLM's parametrisation) have the raw logits of their network there.
    """

    @torch.no_grad()
    def log_quality(
        self, observation: Observation, positions: Bool[Tensor, "row position"], draws: Draws
    ) -> Float[Tensor, "row position"]:
        """Return log p(token shown). Costs nothing beside the evaluation of the step."""
        environment = observation.environment
        hidden = environment.hidden(observation.writable | positions)[positions]
        return dense(positions, log_probs_seen(environment, hidden, observation.tokens[positions])[:, 0])


def left_out(
    observation: Observation, positions: Bool[Tensor, "row position"], parts: int | None, draws: Draws
) -> Float[Tensor, "row position width"]:
    """Return hidden states at committed positions, each of a canvas on which the position is masked; zeros elsewhere.

    Args:
        parts: evaluations of a row: its positions are divided at random into so many subsets of equal size, and a subset is
            masked together. None: one evaluation for each position, which gives exact conditionals.
    """
    length, environment = positions.shape[1], observation.environment
    parts = length if parts is None else parts
    uniforms = draws.uniform("leave_out", observation.row_id, observation.row_step, length)
    rank = uniforms.masked_fill(~positions, 2.0).argsort(1).argsort(1)
    subset = (rank % parts).masked_fill(~positions, -1)
    masked = subset.unsqueeze(1) == torch.arange(parts, device=positions.device)[:, None]  # [row, part, position]
    row, part = masked.any(2).nonzero().unbind(1)
    read = masked[row, part]
    canvases = observation.tokens[row].masked_fill(read, environment.model.mask_id)
    states = environment.hidden_of(canvases, row, read)
    canvas, position = read.nonzero().unbind(1)
    found = torch.zeros(*positions.shape, states.shape[2], device=states.device)
    found[row[canvas], position] = states[canvas, position]
    return found


@dataclass
class LeaveOut:
    """log p(token shown | canvas on which the position is masked), by further evaluations.

    The positions of a row are divided at random into `parts` subsets of equal size. One evaluation for each subset masks it,
    and predicts its tokens. With as many parts as positions it is the exact leave-one-out probability p(y_i | y without y_i).

    Args:
        parts: evaluations of a row; rows with fewer positions need as many as they have positions.
    """

    parts: int

    @torch.no_grad()
    def log_quality(
        self, observation: Observation, positions: Bool[Tensor, "row position"], draws: Draws
    ) -> Float[Tensor, "row position"]:
        """Return the log-probability of each token when its subset is masked. Costs `parts` evaluations of a row."""
        hidden = left_out(observation, positions, self.parts, draws)[positions]
        found = log_probs_seen(observation.environment, hidden, observation.tokens[positions])
        return dense(positions, found[:, 0])


@dataclass
class HeadQuality:
    """Log-probability by a trained head on the hidden states of the model.

    A head with transformer blocks reads the hidden states of whole rows, prompts included, and no padding.
    """

    head: QualityHead

    @torch.no_grad()
    def log_quality(
        self, observation: Observation, positions: Bool[Tensor, "row position"], draws: Draws
    ) -> Float[Tensor, "row position"]:
        """Return log sigmoid of the head's output. Costs no further evaluation of the model, but the head's own FLOP."""
        return F.logsigmoid(self.log_odds(observation, positions)).masked_fill(~positions, 0.0)

    def log_odds(
        self, observation: Observation, positions: Bool[Tensor, "row position"]
    ) -> Float[Tensor, "row position"]:
        """Return the output of the head, valid at `positions`, with its gradient for the head."""
        whole, first = observation.environment, 0
        if isinstance(whole, Response):
            whole, first = whole.whole, whole.first
        read, writable = (F.pad(places, (first, 0)) for places in (positions, observation.writable))
        requested = read | writable
        if self.head.reads_rows:
            place = torch.arange(read.shape[1], device=read.device)
            requested = (place >= (0 if whole.start is None else whole.start.unsqueeze(1))).expand_as(read)
        with torch.no_grad():
            hidden, seen = whole.hidden(requested), torch.zeros(*read.shape, 2, device=read.device)
            if self.head.reads_seen:
                seen = dense(read, log_probs_seen(whole, hidden[read], whole.tokens[read]))
            hidden = hidden[..., : self.head.hidden_size]  # with guidance: of the canvas with its prompt
        return self._at(whole.start, hidden, whole.tokens, whole.given, seen, read)[:, first:]

    def _at(self, start: Int[Tensor, "row"] | None, *columns: Tensor) -> Float[Tensor, "row position"]:
        """Return the output of the head; rows with equal padding go through it together, without it.

        Args:
            columns: arguments of the head, the requested positions last.
        """
        read = columns[-1]
        if start is None:
            return dense(read, self.head(*columns))
        found = torch.zeros(read.shape, device=read.device)
        for (pad,), rows in groups(start):
            own = [column[rows, pad:] for column in columns]
            found[rows] = F.pad(dense(own[-1], self.head(*own)), (int(pad), 0))
        return found


# ----------------------------------------------------------------------------------------------------------------- files


def bind(head: QualityHead, model: MaskedLM) -> None:
    """Store the fingerprint of the model that the head is trained on; every file of the head then has it."""
    head.config[KEY] = fingerprint_of(model).as_dict()


def save_quality(head: QualityHead, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `model.safetensors` (parameters in `dtype`) and `config.json`, as `save_pretrained` does."""
    parameters = {name for name, _ in head.named_parameters()}
    weights = {
        name: (tensor.to(dtype) if name in parameters else tensor).contiguous().cpu()
        for name, tensor in head.state_dict().items()
    }
    with replacing_directory(directory) as part:
        (part / "config.json").write_text(json.dumps(head.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_weights(weights, part / "model.safetensors", Path(directory) / "model.safetensors")


def quality_folder(path: str | Path) -> Path:
    """Return the directory with the files of a head: `path` itself, or `path/quality` of a run. A head of the hub (OWNER/NAME) is
    downloaded once.

    Raises:
        ValueError: there is no head, or the hub cannot be reached.
    """
    path = Path(path)
    if not path.exists() and ID.fullmatch(path.as_posix()):
        fetch(path.as_posix(), "config.json")
        return fetch(path.as_posix(), "model.safetensors").parent
    for folder in (path, path / "quality"):
        if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"{path} holds no quality head: expected config.json and model.safetensors in it or in {path.name}/quality; train one: "
        "python -m unmask train-quality"
    )


def load_quality(path: str | Path, model: MaskedLM) -> QualityHead:
    """Load a quality head for a model, in float32, on its device, in evaluation mode.

    Args:
        path: a directory, a run of train-quality, or a hub id.
        model: the model whose hidden states it reads.

    Raises:
        ValueError: there is no head, its files are damaged, or it was made for another model.
    """
    folder = quality_folder(path)
    config = read_json_object(folder / "config.json")
    known = stored_fingerprint(config, folder / "config.json")
    if known is not None and (found := mismatch(known, fingerprint_of(model))):
        raise ValueError(
            f"the quality head {short_path(path)} {found}, whose hidden states mean something else; use the model that it was "
            "trained on, or train a head for this one: python -m unmask train-quality"
        )
    names = inspect.signature(QualityHead.__init__).parameters
    with readable(folder / "config.json"):
        head = QualityHead(**{name: value for name, value in config.items() if name in names})
    if head.hidden_size != model.hidden_size:
        raise ValueError(
            f"the quality head {short_path(path)} reads hidden states of width {head.hidden_size} and this model's are "
            f"{model.hidden_size} wide; use the model that it was trained on"
        )
    with readable(folder / "model.safetensors"):
        weights = load_weights(folder / "model.safetensors")
    own = head.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or sorted(
        name for name in own if own[name].shape != weights[name].shape
    )
    if wrong:
        raise ValueError(
            f"{folder} has weights that do not fit its config.json: {', '.join(wrong[:3])} ({len(wrong)} in all); give the files "
            "of one and the same head"
        )
    head.load_state_dict(weights)
    if KEY in config:
        head.config[KEY] = config[KEY]
    return head.requires_grad_(False).eval().to(model.device)
