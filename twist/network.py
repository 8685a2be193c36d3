"""A twist: a head, and the trunk that it reads: the frozen model's own, a trained copy of it, or the copy with LoRA.

log psi(state with token v written at i) = head(hidden(state) at i)[v], for a causal model i being the next position and the state
the text so far. A second, scalar head on the mean of the hidden states at masks says log psi of a masked model's state itself,
for steps that write many positions. Conditions go to the head beside the hidden state: a class as one-hot, or given tokens, which
the trunk reads as a text of their own (of a masked model: the mean of what it makes of them).

Zhao et al. (2404.17546) give one vector of V values per position, so that log psi of every next token costs one pass. The head
is linear, or an MLP with ReLU. log psi is any number or, for FUDGE, the logarithm of a probability.
"""

from __future__ import annotations

import copy
import inspect
import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlm.causal_lm import CausalLM
from dlm.fingerprint import KEY, fingerprint_of, mismatch, stored_fingerprint
from dlm.masked_lm import MaskedLM
from model.layers import Layers
from model.sedd import SEDD
from training.files import replacing_directory
from training.hub import shipped
from training.storage import load_weights, save_weights
from training.stored import read_json_object
from training.usage import readable

TRUNKS = ("own", "separate", "lora")
CONDITIONS = ("none", "tokens", "class")
HEADS = (
    "head.",
    "output_layer.",
    "embed_out.",
)  # of a trunk: never read (one that is tied is its embedding, and trained)
CUT = ("attn_qkv.",)  # of RADD: its weight is read in parts, past what an adapter would add


class TwistHead(nn.Module):
    """Map hidden states [.., width] (and conditions [.., condition]) to log psi [.., columns].

    layers: 1 is linear, else an MLP with inner widths `multiplier` times the input's; bounded: log psi = log sigmoid;
    level: one more column that is added to all, for losses that determine psi and not only its differences. Without it
    every column would learn the level separately, and tokens that were not seen yet would keep a higher psi than those that
    were.

    The last layer is 0 at the start, so that psi is constant and the proposal is the model. (The published code uses random
    weights. They are almost constant on states of unit size; on those of a masked model of ours they move the proposal by
    20 nats.)
    """

    def __init__(
        self, width: int, columns: int, layers: int = 1, multiplier: float | int = 1.0, condition: int = 0,
        bounded: bool = False, level: bool = False,
    ):  # fmt: skip
        super().__init__()
        if layers < 1:
            raise ValueError(f"a twist head of layers={layers} is none; give at least 1")
        inner = int((width + condition) * multiplier)
        sizes = [width + condition, *[inner] * (layers - 1)]
        self.inner: Layers[nn.Linear] = Layers(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.last = nn.Linear(sizes[-1], columns)
        self.level = nn.Linear(sizes[-1], 1) if level else None
        self.bounded = bounded
        for layer in self.inner:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.last, self.level):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def _before_last(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        states = hidden if condition is None else torch.cat((hidden, condition), -1)
        for layer in self.inner:
            states = F.relu(layer(states))
        return states

    def _as_log_psi(self, values: Tensor) -> Tensor:
        return F.logsigmoid(values) if self.bounded else values

    def forward(
        self, hidden: Float[Tensor, "*batch width"], condition: Float[Tensor, "*batch given"] | None = None
    ) -> Float[Tensor, "*batch columns"]:
        states = self._before_last(hidden, condition)
        values = self.last(states)
        return self._as_log_psi(values if self.level is None else values + self.level(states))

    def of(
        self, hidden: Float[Tensor, "read width"], tokens: Int[Tensor, "read"],
        condition: Float[Tensor, "read given"] | None = None,
    ) -> Float[Tensor, "read"]:  # fmt: skip
        """Return the output of `forward` at one column per row, without computing the other columns."""
        states = self._before_last(hidden, condition)
        values = (states * self.last.weight[tokens]).sum(-1) + self.last.bias[tokens]
        return self._as_log_psi(values if self.level is None else values + self.level(states).squeeze(-1))


class PairedMasked(MaskedLM):
    """A model and a twist's trunk on the same canvas: their hidden states side by side; the head is the model's."""

    def __init__(self, model: MaskedLM, trunk: MaskedLM):
        super().__init__(model.backbone, str(model.dtype).removeprefix("torch."))
        self.vocab_size, self.mask_id, self.max_length = model.vocab_size, model.mask_id, model.max_length
        self.tokenizer, self.model_id = model.tokenizer, model.model_id
        self.first, self.second = model, trunk
        self.hidden_size = model.hidden_size + trunk.hidden_size

    def hidden_rows(self, tokens, read, sigma):
        return torch.cat([part.hidden_rows(tokens, read, sigma) for part in (self.first, self.second)], 1)

    def head(self, hidden):
        return self.first.head(hidden[:, : self.first.hidden_size])


class PairedCausal(CausalLM):
    """`PairedMasked` for causal models, whose keys and values are cached side by side too."""

    def __init__(self, model: CausalLM, trunk: CausalLM):
        super().__init__(
            model.backbone, model.start_id, str(model.dtype).removeprefix("torch."), model.tokenizer, model.model_id
        )
        self.first, self.second = model, trunk
        self.hidden_size = model.hidden_size + trunk.hidden_size

    def hidden_rows(self, tokens, read, sigma):
        return torch.cat([part.hidden_rows(tokens, read, sigma) for part in (self.first, self.second)], 1)

    @property
    def rooms(self):
        return self.first.rooms and self.first.rooms + self.second.rooms

    def hidden_span(self, tokens, read, memory, start, end):
        layers = len(self.first.rooms)
        halves = ((self.first, memory[:layers]), (self.second, memory[layers:]))
        return torch.cat([part.hidden_span(tokens, read, own, start, end) for part, own in halves], 1)

    def head(self, hidden):
        return self.first.head(hidden[:, : self.first.hidden_size])


class TwistModel(nn.Module):
    """A twist; the module describes it. Its parameters are the trained ones: the heads, and the trunk if it is not the
    model's own.

    trunk: own (the frozen model's), separate (a trained copy), lora (the copy with trained low-rank updates); layers,
    multiplier, bounded, level: of the head; condition: none, tokens or class; state: add the scalar head.
    """

    def __init__(
        self, model: MaskedLM, trunk: str = "own", layers: int = 1, multiplier: float | int = 1.0, bounded: bool = False,
        condition: str = "none", classes: int = 0, state: bool = False, rank: int = 4,
        level: bool = False,
    ):  # fmt: skip
        super().__init__()
        if trunk not in TRUNKS:
            raise ValueError(f"twist.trunk={trunk!r} is unknown; use one of {', '.join(TRUNKS)}")
        if condition not in CONDITIONS:
            raise ValueError(f"twist.condition={condition!r} is unknown; use one of {', '.join(CONDITIONS)}")
        if condition == "class" and classes < 2:
            raise ValueError(f"twist.classes={classes} must be at least 2 for a twist that is given a class")
        if state and model.causal:
            raise ValueError(
                "a causal model writes one token a step, whose twist is that of the state; leave state out"
            )
        self.settings = {
            "trunk": trunk, "layers": layers, "multiplier": multiplier, "bounded": bounded, "condition": condition,
            "classes": classes, "state": state, "rank": rank, "level": level,
        }  # fmt: skip
        self._model = [model]  # a list: the frozen model's parameters are not the twist's
        self.trunk = None if trunk == "own" else trunk_of(model, rank if trunk == "lora" else None)
        width = model.hidden_size
        self.given = {"none": 0, "tokens": width, "class": classes}[condition]  # size of the condition of each row
        self.head = TwistHead(width, model.vocab_size, layers, multiplier, self.given, bounded, level)
        self.state_head = TwistHead(width, 1, layers, multiplier, self.given, bounded) if state else None

    @property
    def model(self) -> MaskedLM:
        return self._model[0]

    @property
    def reader(self) -> MaskedLM:
        """Network whose hidden states the heads read."""
        return self.model if self.trunk is None else self.trunk

    def sampled(self) -> MaskedLM:
        """Return the model for an environment whose hidden states contain the twist's inputs."""
        if self.trunk is None:
            return self.model
        if isinstance(self.model, CausalLM):
            assert isinstance(self.trunk, CausalLM)
            return PairedCausal(self.model, self.trunk)
        return PairedMasked(self.model, self.trunk)

    def own(self, hidden: Float[Tensor, "read both"]) -> Float[Tensor, "read width"]:
        """Select the heads' inputs from hidden states of `sampled()`."""
        return hidden[:, -self.model.hidden_size :]

    def log_psi_next(
        self, hidden: Float[Tensor, "read width"], condition: Float[Tensor, "read given"] | None = None
    ) -> Float[Tensor, "read vocabulary"]:
        """Return log psi of the text with each token committed at the position that `hidden` predicts."""
        return self.head(hidden, condition)

    def log_psi_state(
        self, hidden: Float[Tensor, "row position width"], masked: Bool[Tensor, "row position"],
        condition: Float[Tensor, "row given"] | None = None,
    ) -> Float[Tensor, "row"]:  # fmt: skip
        """Return log psi of canvases by the scalar head. hidden: dense, valid at masked positions."""
        assert self.state_head is not None
        weight = masked.unsqueeze(2).to(hidden.dtype)
        return self.state_head((hidden * weight).sum(1) / weight.sum(1).clamp(min=1), condition).squeeze(1)

    def features(self, tokens: Int[Tensor, "row position"], first: int) -> Float[Tensor, "row output width"]:
        """For a causal model: return the hidden states that predict the tokens from position `first` on, in one
        teacher-forced pass.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trunk is not None):
            return self.reader.hidden(tokens, self.read_from(tokens, first)).unflatten(0, (len(tokens), -1))

    @staticmethod
    def read_from(tokens: Int[Tensor, "row position"], first: int) -> Bool[Tensor, "row position"]:
        """Mark the positions from `first` on."""
        return (torch.arange(tokens.shape[1], device=tokens.device) >= first).expand_as(tokens)

    def log_psi_all(
        self, tokens: Int[Tensor, "row position"], first: int = 0, condition: Float[Tensor, "row given"] | None = None
    ) -> Float[Tensor, "row output"]:
        """Return log psi_t(s_1:t) for t from position `first` on, in one pass and without computing the vocabulary."""
        return self.of_tokens(self.features(tokens, first), tokens[:, first:], condition)

    def of_tokens(
        self, features: Float[Tensor, "row output width"], tokens: Int[Tensor, "row output"],
        condition: Float[Tensor, "row given"] | None = None,
    ) -> Float[Tensor, "row output"]:  # fmt: skip
        each = None if condition is None else condition.repeat_interleave(tokens.shape[1], 0)
        return self.head.of(features.flatten(0, 1), tokens.flatten(), each).view(tokens.shape)

    def of_writes(
        self, canvas: Int[Tensor, "row position"], order: Int[Tensor, "row position"], tokens: Int[Tensor, "row position"],
        condition: Float[Tensor, "row given"] | None = None,
    ) -> Float[Tensor, "row"]:  # fmt: skip
        """For a masked model: return log psi of each canvas with one token committed at the position in `order` (0 if
        there is none).
        """
        selected = order > 0
        row = selected.nonzero()[:, 0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trunk is not None):
            hidden = self.reader.hidden(canvas, selected)
        value = self.head.of(hidden.float(), tokens[selected], None if condition is None else condition[row])
        return torch.zeros(len(canvas), dtype=value.dtype, device=value.device).index_add(0, row, value)

    def of_states(
        self, canvas: Int[Tensor, "row position"], condition: Float[Tensor, "row given"] | None = None
    ) -> Float[Tensor, "row"]:
        """For a masked model: return log psi of each canvas by the scalar head."""
        assert self.state_head is not None
        masked = canvas == self.model.mask_id
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trunk is not None):
            read = self.reader.hidden(canvas, masked).float()
        total = read.new_zeros(len(canvas), read.shape[1]).index_add(0, masked.nonzero()[:, 0], read)
        return self.state_head(total / masked.sum(1, keepdim=True).clamp(min=1), condition).squeeze(1)

    def encode(self, given: Int[Tensor, "row token"] | Int[Tensor, "row"]) -> Float[Tensor, "row given"]:
        """Return the condition of each row, from given tokens [row, token] or a class [row]."""
        if self.settings["condition"] == "class":
            return F.one_hot(given, self.settings["classes"]).float()
        if self.model.causal:
            text = F.pad(given, (0, 1), value=self.model.mask_id)
            read = torch.zeros_like(text, dtype=torch.bool)
            read[:, -1] = True
            return self.reader.hidden(text, read).float()
        read = torch.ones_like(given, dtype=torch.bool)
        return self.reader.hidden(given, read).float().unflatten(0, given.shape).mean(1)

    def trained(self) -> dict[str, Tensor]:
        """Return the parameters that are trained (and saved), by name."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}


def trunk_of(model: MaskedLM, rank: int | None) -> MaskedLM:
    """Return a trained copy of the model; with a rank, the copy has the model's weights and trained low-rank updates
    (peft).
    """
    shared = {id(parameter): parameter for parameter in model.parameters()} if rank is not None else {}
    tokenizer, model.tokenizer = model.tokenizer, None
    trunk = copy.deepcopy(model, dict(shared))
    model.tokenizer = tokenizer
    if rank is None:
        trunk.float()  # trained weights are float32, whatever the precision of the model
        for name, parameter in trunk.named_parameters():
            parameter.requires_grad_(not any(part in name for part in HEADS))
        return trunk
    if rank < 1:
        raise ValueError(f"twist.rank={rank} must be at least 1; change it")
    if isinstance(model.backbone, SEDD):
        raise ValueError(
            "twist.trunk=lora adapts causal models, LLaDA, Dream and RADD, and this one is a SEDD; use separate"
        )
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import: only where it is used
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in trunk.backbone.named_modules()
              if isinstance(module, nn.Linear | Conv1D) and not any(part in f"{name}." for part in (*HEADS, *CUT))]  # fmt: skip
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), trunk.backbone)
    for parameter in trunk.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trunk


def densities(
    twist: TwistModel, tokens: Int[Tensor, "row position"], first: int = 0,
    condition: Float[Tensor, "row given"] | None = None, states: Float[Tensor, "read width"] | None = None,
) -> tuple[Float[Tensor, "row output"], Float[Tensor, "row output"], Float[Tensor, "row output"]]:  # fmt: skip
    """For a causal model, teacher-forced: return log p(s_t | s_<t), log psi_t(s_1:t) and the log-normalizer of the
    proposal.

    The log-normalizer is the log of the sum over v of p(v | s_<t) psi_t(s_<t, v). Logits exist for a chunk of positions at
    a time and are recomputed in the backward pass.

    Args:
        states: hidden states of the frozen model that predict the tokens, if they are known.
    """
    model, targets = twist.model, tokens[:, first:]
    if states is None:
        with torch.no_grad():
            states = model.hidden(tokens, twist.read_from(tokens, first))
    hidden, features = states, states if twist.trunk is None else twist.features(tokens, first).flatten(0, 1)
    each = None if condition is None else condition.repeat_interleave(targets.shape[1], 0)

    def of_chunk(states: Tensor, own: Tensor, target: Tensor, given: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            logits = model.head(states).log_softmax(1)
        log_psi = twist.log_psi_next(own, given)
        index = target.unsqueeze(1)
        return torch.stack(
            (logits.gather(1, index).squeeze(1), log_psi.gather(1, index).squeeze(1), (logits + log_psi).logsumexp(1))
        )

    columns = (hidden, features, targets.flatten()) + (() if each is None else (each,))
    found = []
    for part in zip(*(column.split(model.chunk(tokens.device)) for column in columns), strict=True):
        found.append(checkpoint(of_chunk, *part, use_reentrant=False) if torch.is_grad_enabled() else of_chunk(*part))
    log_p, log_psi, log_normalizer = torch.cat(found, 1).unflatten(1, targets.shape).unbind(0)
    return log_p.detach(), log_psi, log_normalizer


def save_twist(twist: TwistModel, directory: str | Path, about: dict) -> None:
    """Write model.safetensors (trained parameters) and config.json: settings of the twist, the fingerprint of its model,
    and `about` (`model`, `method`, `target` and so on). Weights are moved into place when complete.
    """
    weights = {name: value.to("cpu", copy=True).contiguous() for name, value in twist.trained().items()}
    known = {"twist": twist.settings, KEY: fingerprint_of(twist.model).as_dict(), **about}
    with replacing_directory(directory) as part:
        (part / "config.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        save_weights(weights, part / "model.safetensors", Path(directory) / "model.safetensors")


def read_about(directory: str | Path) -> dict:
    """Return config.json of a twist. ValueError if it is missing."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise ValueError(f"{directory} is no twist: {file} does not exist; give a run of train-twist")
    about = read_json_object(file)
    if not isinstance(about.get("twist"), dict):
        raise ValueError(f"{file} has no 'twist'; give a run of train-twist, not a model or a policy")
    if not isinstance(about.get("target", {}), dict):
        raise ValueError(f"{file} has a 'target' that holds no settings; give a run of train-twist")
    texts = {
        "model": about.get("model"),
        "method": about.get("method"),
        "prompt": "" if about.get("prompt") is None else about["prompt"],
    }
    if wrong := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise ValueError(f"{file} has no text as {' and '.join(wrong)}; give a run of train-twist")
    return about | {"prompt": about.get("prompt"), "twist": _settings(about["twist"], file)}


def _settings(stored: dict, file: Path) -> dict:
    """Return the arguments of `TwistModel` that a file stores, with defaults for missing ones."""
    parameters = inspect.signature(TwistModel.__init__).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    for name, value in stored.items():
        due = (float, int) if name == "multiplier" else type(defaults.get(name))
        if name not in defaults or not isinstance(value, due):
            raise ValueError(
                f"{file} has twist.{name}={value!r}, which is no setting of a twist; give a run of train-twist"
            )
    return defaults | stored


def twist_directory(path: str) -> str:
    """Return the directory of a twist; for a run, that of its twist."""
    path = shipped(path)
    return str(Path(path) / "twist") if (Path(path) / "twist").is_dir() else path


def load_twist(directory: str | Path, model: MaskedLM) -> tuple[TwistModel, dict]:
    """Load a twist on the model that it was trained on, frozen. Returns it and its description. ValueError if model and
    twist do not fit.
    """
    about = read_about(directory)
    twist = TwistModel(model, **about["twist"])
    with readable(Path(directory) / "model.safetensors"):
        state = load_weights(Path(directory) / "model.safetensors")
    own = twist.trained()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(name for name in own if own[name].shape != state[name].shape)
    if wrong:
        raise ValueError(
            f"the twist {directory} does not fit the model {model.model_id}: {', '.join(wrong[:3])} ({len(wrong)} in all); it "
            f"was learnt on {about.get('model')}, so sample from that"
        )
    known = stored_fingerprint(about, Path(directory) / "config.json")
    if known is not None and (found := mismatch(known, fingerprint_of(model))):
        raise ValueError(f"the twist {directory} {found}; give the model that it was trained on")
    twist.load_state_dict(state, strict=False)
    return twist.requires_grad_(False).eval().to(next(model.parameters()).device), about
