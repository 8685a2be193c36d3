"""Reward models and packaged rewards: one number for a text, or for a row of token ids.

    load_reward("output/2026.01.31/120000")     a run of train-reward
    load_reward("OWNER/NAME")                   any sequence classifier of transformers, or its directory, with one output
    load_reward("OWNER/NAME#positive")          log p of a label of a classifier with several labels (of a regression: its value)
    load_reward("vader")  "profanity"  "brevity"  "embedding:OWNER/NAME"  "embedding:OWNER/NAME#a text"

A `RewardModel` takes ids of its own tokenizer, a `TextReward` takes strings; a classifier is both. Higher is better in all
of them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from dlm.encoding import batch_ids, check_embedded
from dlm.fingerprint import KEY, Fingerprint, stored_fingerprint, token_digest
from rewards.template import KINDS, fitted
from training.hub import SHIPPED, hide_weight_bars, prepare
from training.storage import check_files, check_read, load_weights, save_weights

if TYPE_CHECKING:
    import transformers

POSITIONS = 16_384  # of a forward pass
POSITION_TABLES = ("wpe", "embed_positions", "position_embedding", "position_embeddings")  # names of learned positions
TOKENS = "reward_tokens"  # in config.json of our sequence classifiers: the digest of their tokens
HEAD = "vocabulary_head.json"  # in a directory with a VocabularyHead


@runtime_checkable
class RewardModel(Protocol):
    """A reward of token ids of ITS OWN tokenizer.

    kind: input of its training: full (whole answers), prefix (unfinished answers) or mask (canvases with masks, whose id is
    tokenizer.mask_token_id). `real` is False at padding.
    """

    tokenizer: transformers.PreTrainedTokenizerFast
    kind: str

    def score(
        self, tokens: Int[Tensor, "row position"], real: Bool[Tensor, "row position"] | None = None
    ) -> Float[Tensor, "row"]: ...


@runtime_checkable
class TextReward(Protocol):
    """A reward of texts that answer prompts ("" without a prompt). finished: which texts reached their end (None: all);
    some rewards use it.
    """

    def score_texts(
        self, prompts: list[str], texts: list[str], finished: Sequence[bool] | None = None
    ) -> Float[Tensor, "row"]: ...


# ------------------------------------------------------------------------------------------------------------- classifiers


class SequenceClassifier:
    """A sequence classifier of transformers, frozen, in float32, shared by rewards and twists.

    causal: it reads from the left (GPT-2, Llama: a linear `score` of the last token's state). Padding may be anywhere: rows
    are packed to the left, so that the last token is found without a padding id, and a row does not depend on its batch. A
    row without tokens is read as its start token.
    """

    def __init__(self, model: Any, tokenizer: transformers.PreTrainedTokenizerFast):
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.causal = is_causal_classifier(model)
        self.pad_id: Any = tokenizer.pad_token_id or 0
        self.max_length = position_limit(model, tokenizer)

    @torch.no_grad()
    def logits(
        self, tokens: Int[Tensor, "row position"], real: Bool[Tensor, "row position"] | None = None
    ) -> Float[Tensor, "row label"]:
        """Return float32 logits, on the device of `tokens`. real: False at padding."""
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        if len(tokens) == 0:
            return torch.zeros(0, self.model.config.num_labels, device=tokens.device)
        if bool((~real.any(1)).any()):
            start = start_of(self.tokenizer)
            tokens, real = F.pad(tokens, (1, 0), value=start), F.pad(real, (1, 0))
            real[:, 0] = ~real.any(1)
        order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
        tokens, real = tokens.gather(1, order), real.gather(1, order)
        rows = max(1, POSITIONS // tokens.shape[1])
        parts = zip(tokens.split(rows), real.split(rows), strict=True)
        return torch.cat([self._logits(*part) for part in parts])

    def _logits(
        self, tokens: Int[Tensor, "row position"], real: Bool[Tensor, "row position"]
    ) -> Float[Tensor, "row label"]:
        length = real.sum(1)
        if int(length.max()) > self.max_length:
            raise ValueError(
                f"a row of {int(length.max())} tokens, prompt and answer, is longer than the {self.max_length} that the reward "
                "model reads; shorten either"
            )
        tokens, real = (part[:, : int(length.max())].to(self.model.device) for part in (tokens, real))
        given = {
            "input_ids": tokens.masked_fill(~real, self.pad_id),
            "attention_mask": real.long(),
        }
        if self.causal:
            states = self.model.base_model(**given, use_cache=False).last_hidden_state
            logits = self.model.score(states[torch.arange(len(tokens)), length - 1])
        else:
            logits = self.model(**given).logits
        return logits.float().to(length.device)

    def read(self, prompts: list[str], texts: list[str], finished: Sequence[bool]) -> Float[Tensor, "row label"]:
        """Return logits of texts in the template of training, with the end token for finished answers
        (`rewards.template.fitted`).

        Long texts lose their beginning.
        """
        answers = zip(prompts, texts, finished, strict=True)
        rows = [fitted(self.tokenizer, *answer, self.max_length) for answer in answers]
        check_rows(self.model, rows, texts)
        return self.logits(*padded(rows))

    def __call__(self, texts: list[str]) -> Float[Tensor, "row label"]:
        """Return logits of texts without a prompt, as its tokenizer encodes them: with an end for encoders, without for
        causal models.
        """
        encoder = self.tokenizer.cls_token_id is not None and self.tokenizer.sep_token_id is not None
        bare, marked = (self.tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
        return self.read([""] * len(texts), texts, [encoder or bare[-1:] != marked[-1:]] * len(texts))

    @property
    def problem(self) -> str | None:
        """Kind of its problem: multi_label_classification, regression, single_label_classification, or None (classes)."""
        return self.model.config.problem_type

    def log_probs(self, logits: Float[Tensor, "*batch logit"]) -> Float[Tensor, "*batch label"]:
        """Return the log-probability of each label: log sigmoid for multi-label classifiers, else log softmax.

        One logit is that of class 1 against class 0. A regression has no probabilities: its values are returned.
        """
        if self.problem == "multi_label_classification":
            return F.logsigmoid(logits)
        if self.problem == "regression":
            return logits
        return class_log_probs(logits)


def class_log_probs(logits: Float[Tensor, "*batch logit"]) -> Float[Tensor, "*batch label"]:
    """Return the log softmax; one logit is that of class 1 (its sigmoid) against class 0."""
    if logits.shape[-1] == 1:
        logits = torch.cat((torch.zeros_like(logits), logits), -1)  # log softmax of (0, r) is log sigmoid of (-r, r)
    return logits.log_softmax(-1)


class ClassifierReward(SequenceClassifier):
    """The single output of a sequence classifier, or the log-probability of one of several labels (for a regression its
    value).
    """

    def __init__(
        self, model: Any, tokenizer: transformers.PreTrainedTokenizerFast, kind: str = "full", label: int | None = None
    ):
        if kind not in KINDS:
            raise ValueError(f"a reward model's kind is {kind!r}; expected one of {', '.join(KINDS)}")
        super().__init__(model, tokenizer)
        self.kind, self.label = kind, label

    def score(
        self, tokens: Int[Tensor, "row position"], real: Bool[Tensor, "row position"] | None = None
    ) -> Float[Tensor, "row"]:
        """Return float32 rewards, on the device of `tokens`."""
        return self.value(self.logits(tokens, real))

    def score_hidden(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """Return the reward of rows that end at a token, from its state in the last layer (causal models)."""
        return self.value(self.model.score(hidden))

    def value(self, logits: Float[Tensor, "*batch logit"]) -> Float[Tensor, "*batch"]:
        """Select the reward among the outputs."""
        return logits[..., 0].float() if self.label is None else self.log_probs(logits.float())[..., self.label]

    def score_texts(
        self, prompts: list[str], texts: list[str], finished: Sequence[bool] | None = None
    ) -> Float[Tensor, "row"]:
        """Score texts in the template of training, with the end token for finished answers."""
        return self.value(self.read(prompts, texts, [True] * len(texts) if finished is None else finished))


def position_limit(model: Any, tokenizer: Any) -> int:
    """Return the maximal number of tokens of a model's input.

    It comes from the table of positions if there is one: RoBERTa's first position is behind the padding id, OPT's and
    BART's tables have an offset. Other models (rotary, relative) have it in their configuration. The tokenizer may allow
    fewer.
    """
    tables = [module for name, module in model.named_modules()
              if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES]  # fmt: skip
    limits = [table.num_embeddings - first_position(table) for table in tables]
    if not limits:
        limits = [model.config.to_dict().get("max_position_embeddings") or 0]
    return min(limit for limit in (*limits, int(tokenizer.model_max_length)) if limit > 0)


def is_causal_classifier(model: nn.Module) -> bool:
    """Return whether a sequence classifier of transformers is causal: the head of causal ones is named `score`."""
    return "score" in dict(model.named_children())


def first_position(table: nn.Embedding) -> int:
    """Return the row of a table of positions that belongs to the first token."""
    behind_padding = 0 if table.padding_idx is None else table.padding_idx + 1
    return int(vars(table).get("offset", behind_padding))


def start_of(tokenizer: Any) -> int:
    """Return the token of an empty row: the start token, else the end token, else the padding token."""
    known = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    return next(token for token in known if token is not None)


def check_rows(model: Any, rows: Sequence[list[int]], texts: Sequence[str]) -> None:
    """Raise ValueError for a text with a token that has no embedding in the model."""
    known = model.get_input_embeddings().num_embeddings
    for row, text in zip(rows, texts, strict=True):
        check_embedded(known, row, f"the text {text[-60:]!r}")


def padded(rows: Sequence[list[int]]) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
    """Pad rows of ids to one length. Returns them and which tokens are real."""
    length = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    tokens = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return tokens, torch.arange(tokens.shape[1]) < length[:, None]


def shares_tokens(reward: RewardModel, tokenizer: Any) -> bool:
    """Return whether every token of a language model's tokenizer has the same id in the reward model's, so that ids can be
    scored directly.
    """
    own = reward.tokenizer.get_vocab()
    return all(own.get(token) == number for token, number in tokenizer.get_vocab().items())


# --------------------------------------------------------------------------------------------------------- vocabulary heads


class VocabularyHead(nn.Module):
    """The value of every next token in one call: a linear layer on the hidden states of a frozen language model, `trunk`.

    FaRMA's head ("Towards Cost-Effective Reward Guided Text Generation", 2502.04517); with a masked trunk, the value of
    every token at every mask. What differs: the trunk is the decoding model itself, so guidance costs no additional model
    call. trained_on: the fingerprint of the trunk; None for a head that was saved without one.
    """

    def __init__(self, hidden_size: int, vocab_size: int, trunk: str, kind: str, trained_on: Fingerprint | None = None):
        super().__init__()
        self.linear = nn.Linear(hidden_size, vocab_size)
        self.trunk, self.kind, self.trained_on = trunk, kind, trained_on
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        """Map the state that predicts a position (`MaskedLM.hidden`) to the value of each token there, in float32."""
        return self.linear(hidden.float())

    def save(self, directory: Path) -> None:
        """Write the files that `load_head` reads."""
        directory.mkdir(parents=True, exist_ok=True)
        vocabulary, width = self.linear.weight.shape
        settings = {"hidden_size": width, "vocab_size": vocabulary, "trunk": self.trunk, "kind": self.kind}
        settings |= {} if self.trained_on is None else {KEY: self.trained_on.as_dict()}
        (directory / HEAD).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_weights(self.state_dict(), directory / "model.safetensors")


def load_head(path: str | Path, device: str | torch.device = "cpu") -> VocabularyHead:
    """Load the frozen vocabulary head of a run, or of its directory. ValueError if there is none."""
    folder = reward_folder(str(path))
    if not (Path(folder) / HEAD).is_file():
        raise ValueError(f"{path} holds no vocabulary head; train one: train-reward reward.head=vocabulary")
    settings = json.loads((Path(folder) / HEAD).read_text(encoding="utf-8-sig"))
    sizes = {"hidden_size": int, "vocab_size": int, "trunk": str, "kind": str}
    if not isinstance(settings, dict) or any(type(settings.get(name)) is not kind for name, kind in sizes.items()):
        raise ValueError(
            f"{Path(folder) / HEAD} lacks {', '.join(sizes)}; give the one that was saved with the weights"
        )
    trained_on = stored_fingerprint(settings, Path(folder) / HEAD)
    head = VocabularyHead(**{name: settings[name] for name in sizes}, trained_on=trained_on)
    head.load_state_dict(load_weights(Path(folder) / "model.safetensors"))
    return head.requires_grad_(False).eval().to(device)


# ---------------------------------------------------------------------------------------------------------------- packages


class VaderReward:
    """Sentiment by VADER's lexicon and rules (Hutto and Gilbert, 2014): its `compound`, from -1 to 1. It ignores the
    prompt.
    """

    def __init__(self):
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # an extra: only where it is used

        self.analyser = SentimentIntensityAnalyzer()

    def score_texts(
        self, prompts: list[str], texts: list[str], finished: Sequence[bool] | None = None
    ) -> Float[Tensor, "row"]:
        return torch.tensor([self.analyser.polarity_scores(text)["compound"] for text in texts])


class ProfanityReward:
    """1 - p(profane) by alt-profanity-check's linear model.

    Its weights are a pickle, which could execute code: the two files are loaded only if they equal those of the pinned
    wheel, bit for bit.
    """

    VERSION = "1.9.1"
    SHA256: ClassVar = {
        "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
        "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
    }

    def __init__(self):
        distribution = importlib.metadata.distribution("alt-profanity-check")
        self.vectorizer, self.model = (
            self._loaded(Path(str(distribution.locate_file(f"profanity_check/data/{name}")))) for name in self.SHA256
        )

    def _loaded(self, file: Path) -> Any:
        import joblib

        if hashlib.sha256(file.read_bytes()).hexdigest() != self.SHA256[file.name]:
            raise ValueError(
                f"{file} is not the file of alt-profanity-check {self.VERSION}, and as a pickle it is not loaded; install that "
                f"version: pip install --force-reinstall --no-deps alt-profanity-check=={self.VERSION}"
            )
        return joblib.load(file)

    def score_texts(
        self, prompts: list[str], texts: list[str], finished: Sequence[bool] | None = None
    ) -> Float[Tensor, "row"]:
        return 1 - torch.from_numpy(self.model.predict_proba(self.vectorizer.transform(texts))[:, 1]).float()


class BrevityReward:
    """Minus the number of words: a preference with a known ground truth."""

    def score_texts(
        self, prompts: list[str], texts: list[str], finished: Sequence[bool] | None = None
    ) -> Float[Tensor, "row"]:
        return torch.tensor([-float(len(text.split())) for text in texts])


class EmbeddingReward:
    """Cosine similarity of a text and its prompt, or of a text and `target`, in the mean of an encoder's last hidden
    states.
    """

    def __init__(self, model: Any, tokenizer: transformers.PreTrainedTokenizerFast, target: str | None = None):
        self.model, self.tokenizer, self.target = model.requires_grad_(False).eval(), tokenizer, target

    def score_texts(
        self, prompts: list[str], texts: list[str], finished: Sequence[bool] | None = None
    ) -> Float[Tensor, "row"]:
        others = prompts if self.target is None else [self.target]
        return (self.embedded(texts) * self.embedded(others)).sum(1)

    @torch.no_grad()
    def embedded(self, texts: list[str]) -> Float[Tensor, "text width"]:
        """Return vectors of length 1."""
        longest = position_limit(self.model, self.tokenizer)
        rows = [row or [start_of(self.tokenizer)] for row in batch_ids(self.tokenizer, texts, longest)]
        check_rows(self.model, rows, texts)
        tokens, real = padded(rows)
        states = self.model(input_ids=tokens.to(self.model.device), attention_mask=real.long().to(self.model.device))
        weight = real[:, :, None].to(self.model.device)
        means = (states.last_hidden_state * weight).sum(1) / weight.sum(1)
        return nn.functional.normalize(means.float(), dim=1).cpu()


PACKAGED: dict[str, tuple[Callable[[], TextReward], str]] = {
    "vader": (VaderReward, "vaderSentiment==3.3.2"),
    "profanity": (ProfanityReward, f"alt-profanity-check=={ProfanityReward.VERSION}"),
    "brevity": (BrevityReward, ""),
}


# ----------------------------------------------------------------------------------------------------------------- loading


def reward_folder(path: str) -> str:
    """Return RUN/model for a run of train-reward; any other path or id unchanged."""
    model = Path(path) / "model"
    return str(model) if (Path(path) / ".hydra").is_dir() and model.is_dir() else path


def load_reward(path_or_id: str, device: str | torch.device = "cpu") -> RewardModel | TextReward:
    """Load a frozen reward by one of the names at the top of this module. No remote code and no pickled code runs.

    Raises:
        ValueError: there is no reward, a package is missing, there are several outputs and no label, or it is a vocabulary
            head, which only the strategy value_head uses. The message says what to do.
    """
    if path_or_id in PACKAGED:
        make, requirement = PACKAGED[path_or_id]
        try:
            return make()
        except ImportError as error:
            raise ValueError(f"the reward {path_or_id} needs a package; pip install {requirement}") from error
    if path_or_id.startswith("embedding:"):
        name, _, part = path_or_id.removeprefix("embedding:").partition("#")
        model, tokenizer = _pretrained("AutoModel", name)
        return EmbeddingReward(model.to(device), tokenizer, part or None)
    name, part = with_label(path_or_id)
    folder = reward_folder(name)
    if (Path(folder) / HEAD).is_file():
        raise ValueError(
            f"{name} is a vocabulary head: it scores the next token while its own language model decodes (load_head), and no "
            "texts; give a reward model of reward.head=sequence"
        )
    model, tokenizer = _pretrained("AutoModelForSequenceClassification", folder)
    return ClassifierReward(
        model.to(device), tokenizer, model.config.to_dict().get("reward_kind", "full"), _label(model, name, part)
    )


def with_label(path_or_id: str) -> tuple[str, str]:
    """Return (path or id, label behind the last `#`, empty without one). A directory whose name has a `#` is a path."""
    name, _, label = path_or_id.rpartition("#")
    return (name, label) if name and not Path(path_or_id).exists() else (path_or_id, "")


def load_classifier(path_or_id: str, device: str | torch.device = "cpu") -> SequenceClassifier:
    """Load a sequence classifier with all its outputs, from a run, a directory or an id."""
    model, tokenizer = _pretrained("AutoModelForSequenceClassification", reward_folder(path_or_id))
    return SequenceClassifier(model.to(device), tokenizer)


def _label(model: Any, name: str, label: str) -> int | None:
    labels = model.config.id2label
    if model.config.num_labels == 1:
        if label:
            raise ValueError(f"{name} has one output and no label {label!r}; leave #{label} out")
        return None
    found = [int(number) for number, known in labels.items() if label == known] or [
        int(number) for number in labels if label == str(number)
    ]
    if not found:
        raise ValueError(f"{name} has the labels {', '.join(labels.values())}; say which is good: {name}#{labels[0]}")
    return found[0]


def check_reward(path_or_id: str) -> None:
    """Refuse, before a model is loaded, a name that is no reward. ValueError has the nearest name."""
    encoder = path_or_id.removeprefix("embedding:")
    name = with_label(path_or_id)[0] if encoder == path_or_id else encoder.partition("#")[0]
    folder = reward_folder(name)
    if path_or_id in PACKAGED or (Path(folder) / HEAD).is_file():
        return
    if Path(folder).is_dir() and not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; give a run of train-reward or a checkpoint of transformers")
    prepare(folder, "reward", {name: name for name in PACKAGED} | SHIPPED)


def _pretrained(kind: str, path: str) -> tuple[Any, transformers.PreTrainedTokenizerFast]:
    """Load weights and tokenizer. kind: a class of transformers. Missing weights would be random, and are refused."""
    import transformers

    check_reward(path)
    check_files(path)
    hide_weight_bars()
    try:
        model, loading_info = getattr(transformers, kind).from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError, SafetensorError) as error:  # TypeError: a config.json that is no object
        known = ", ".join(PACKAGED)
        first = str(error).splitlines()[0]
        raise ValueError(
            f"the reward {path} is none of {known} and cannot be loaded as a model ({first}); check the name, or give a directory"
        ) from error
    if missing := sorted(name for name in loading_info["missing_keys"] if "pooler" not in name):
        raise ValueError(
            f"{path} is no reward model: it lacks {', '.join(missing[:3])}; train one from it: train-reward init={path}"
        )
    check_read(model.named_parameters(), path)
    if getattr(model.config, TOKENS, None) not in (None, token_digest(tokenizer)):
        raise ValueError(
            f"the reward {path} was trained on other tokens than those of the tokenizer beside it; put the tokenizer that it was "
            "saved with back"
        )
    return model, tokenizer
