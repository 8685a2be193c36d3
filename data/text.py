"""Text for language models: load it, tokenize it, cut it into rows, and draw rows endlessly.

Packing is the usual one (GPT-2, SEDD, RADD): documents are joined with the end-of-text token and cut into rows of equal
length, so a row may begin in the middle of a document. `documents` begins every row at a document, which suits small models
of short stories. `EndlessRows` draws the rows. Its position in the stream is one number: a killed run continues with the
next batch, also with another number of processes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from dlm.encoding import batch_ids, without_surrogates
from training.hub import hide_data_bars, load_split, prepare, shipped

if TYPE_CHECKING:
    import datasets
    import transformers

logging.getLogger("datasets.packaged_modules.json.json").setLevel(
    logging.CRITICAL
)  # a broken line is named by `_read_here`

STORIES = Path(__file__).parent / "stories"
END_OF_TEXT = "<|endoftext|>"

# Our name -> arguments of `load_dataset`, and its text column. The data sets with a train split only hold out its end.
HUB = {
    "openwebtext": ({"path": "Skylion007/openwebtext"}, "text"),
    "wikitext2": ({"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"}, "text"),
    "wikitext103": ({"path": "Salesforce/wikitext", "name": "wikitext-103-raw-v1"}, "text"),
    "lambada": ({"path": "EleutherAI/lambada_openai", "name": "default"}, "text"),
    "ptb": (
        {"path": "ptb-text-only/ptb_text_only", "data_dir": "penn_treebank", "revision": "refs/convert/parquet"},
        "sentence",
    ),
    "lm1b": ({"path": "dvruette/lm1b"}, "text"),
}
HUB_SPLITS = {
    "openwebtext": {"train": "train[:-100000]", "valid": "train[-100000:]"},  # as in MDLM
    "lambada": {"valid": "test"},
    "lm1b": {"valid": "test"},
}


LONGEST = 1 << 26  # bytes of a line of a gzipped file
UNPACKED, ROOM = 100, 1 << 26  # a gzipped file may unpack to so many times its size, and so many bytes besides


def load_texts(name: str, split: str, cache_dir: str | Path | None = None) -> datasets.Dataset:
    """Return a data set with one column "text", one document per row, without empty documents.

    A document that is the name of the end-of-text token marks the border of two documents and is dropped.

    Args:
        name: a key of `HUB`, any other hub id with a column "text", `stories` (shipped), or a local path: `.txt` (one
            document per line), `.jsonl` or `.jsonl.gz` (field "text"), or a directory written by `save_to_disk`.
        split: train, valid or test. A local file is its own split, in UTF-8 with an optional byte order mark.

    Raises:
        ValueError: the data cannot be reached, is not text, or has a line that is not JSON.
    """
    hide_data_bars()
    local = STORIES / f"{split}.jsonl.gz" if name == "stories" else Path(shipped(name))
    column = "text"
    if local.is_dir():
        texts = _of_directory(local, split, name)
    elif local.name.endswith((".txt", ".jsonl", ".jsonl.gz")):
        texts = _of_file(local, name, cache_dir)
    elif local.is_file():
        raise ValueError(f"the data set '{name}' is a file of no known kind; give a .txt, .jsonl or .jsonl.gz file")
    else:
        where, column = HUB.get(name, ({"path": name}, "text"))
        texts = _of_hub(where, split, name, cache_dir)
    _check_column(texts, column, name)
    texts = texts.select_columns([column])
    texts = texts if column == "text" else texts.rename_column(column, "text")
    texts = texts.filter(_not_empty, input_columns="text")
    if len(texts) == 0:
        raise ValueError(f"the data set '{name}' holds no text; give one with a document a line")
    return texts


def _of_directory(directory: Path, split: str, name: str) -> datasets.Dataset:
    from datasets import DatasetDict, load_from_disk

    try:
        texts = load_from_disk(str(directory))
    except FileNotFoundError as error:
        raise ValueError(
            f"the directory {directory} holds no data set of `save_to_disk`; give one, or a file"
        ) from error
    return _pick(texts, split, name) if isinstance(texts, DatasetDict) else texts


def _of_file(file: Path, name: str, cache_dir: str | Path | None) -> datasets.Dataset:
    from datasets.exceptions import DatasetGenerationError

    if not file.is_file():
        raise ValueError(f"there is no file {file} for the data set '{name}': give the path of a file that exists.")
    check_unpacked(file)
    builder = "text" if file.suffix == ".txt" else "json"
    try:
        return load_split(
            builder,
            split="train",
            data_files=str(file),
            cache_dir=None if cache_dir is None else str(cache_dir),
            encoding="utf-8-sig",
        )
    except (DatasetGenerationError, ValueError, EOFError, StopIteration):  # which name no file and no line
        return _read_here(file)


def _of_hub(where: dict[str, str], split: str, name: str, cache_dir: str | Path | None) -> datasets.Dataset:
    prepare(where["path"], "data set", {known: known for known in ("stories", *HUB)})
    hub_split = HUB_SPLITS.get(name, {}).get(split, {"valid": "validation"}.get(split, split))
    try:
        return load_split(**where, split=hub_split, cache_dir=cache_dir)
    except OSError as error:
        raise ValueError(
            f"the data set '{name}' (hub id {where['path']}) cannot be reached: check the name and the network, or "
            "give the path of a local .txt, .jsonl or .jsonl.gz file or of a `save_to_disk` directory instead."
        ) from error


def _check_column(texts: datasets.Dataset, column: str, name: str) -> None:
    """Raise ValueError if a data set has no such column, or no texts in it."""
    from datasets import Value

    if column not in texts.column_names:
        raise ValueError(
            f"the data set '{name}' has columns {texts.column_names}, expected '{column}': rename its column."
        )
    kind = texts.features[column]
    if not isinstance(kind, Value) or kind.dtype not in ("string", "large_string"):
        found = kind.dtype if isinstance(kind, Value) else "several kinds"
        raise ValueError(
            f"the data set '{name}' has values of type {found} in column '{column}', expected texts: mend that column."
        )


def _read_here(path: Path) -> datasets.Dataset:
    """Read a local file that `datasets` refuses: repair halves of surrogate pairs, or raise ValueError that names the
    broken line.
    """
    if path.suffix == ".txt":
        texts = [line.rstrip("\n") for _, line in text_lines(path)]
    else:
        texts = []
        for place, row in json_lines(path):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise ValueError(f'{place} has no text "text"; add it')
            texts.append(row["text"])
    if not texts:
        raise ValueError(f"{path} holds no text; give a file with a document a line")
    from datasets import Dataset

    return Dataset.from_dict({"text": texts})


def check_unpacked(path: Path) -> None:
    """Refuse a gzipped file that unpacks to far more than text does, or to a line that no document has. Other files are
    skipped.

    Raises:
        ValueError: names the bound.
    """
    if path.suffix != ".gz":
        return
    most, total, line = UNPACKED * path.stat().st_size + ROOM, 0, 0
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(1 << 20):
                total += len(block)
                line = line + len(block) if b"\n" not in block else len(block) - block.rfind(b"\n") - 1
                if total > most or line > LONGEST:
                    break
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); give it again, or unpacked") from error
    if total > most:
        raise ValueError(
            f"{path} unpacks to more than {UNPACKED} times its size, which no text does; unpack it to look at it"
        )
    if line > LONGEST:
        raise ValueError(f"{path} has a line of more than {LONGEST:,} bytes; cut its documents into several")


@contextmanager
def opened_text(path: Path) -> Iterator[IO[str]]:
    """Open a user's text file, gzipped or not: UTF-8 with an optional byte order mark. ValueError for other bytes."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x}: {error.reason}); save it as UTF-8"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); give it again, or unpacked") from error


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (location, line) of each line of a text file."""
    check_unpacked(path)
    with opened_text(path) as file:
        for number, line in enumerate(file, 1):
            yield f"{path} line {number}", line


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (location, value) of each line of a .jsonl or .jsonl.gz file. Empty lines are skipped.

    Halves of surrogate pairs (a cut emoji) become U+FFFD.

    Raises:
        ValueError: names the line that is not JSON.
    """
    for place, line in text_lines(path):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{place} is not JSON ({error.msg} at character {error.pos}); mend or remove that line"
            ) from error
        except RecursionError as error:
            raise ValueError(f"{place} is nested too deeply; mend or remove that line") from error
        yield place, _mended(found)


def _mended(value: Any) -> Any:
    """Apply `without_surrogates` to all texts of a JSON value."""
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_mended(each) for each in value]
    return {_mended(key): _mended(each) for key, each in value.items()} if isinstance(value, dict) else value


def _pick(splits: datasets.DatasetDict, split: str, name: str) -> datasets.Dataset:
    split = "validation" if split == "valid" and "valid" not in splits else split
    if split not in splits:
        raise ValueError(f"the data set '{name}' has no split '{split}': choose one of {', '.join(map(str, splits))}.")
    return splits[split]


def _not_empty(text: str | None) -> bool:
    return bool(text) and text.strip() not in ("", END_OF_TEXT)


def pack(
    texts: datasets.Dataset,
    tokenizer: transformers.PreTrainedTokenizerBase,
    length: int,
    eos_id: int,
    cache_dir: str | Path | None = None,
) -> Int[Tensor, "row position"]:
    """Join documents with the end-of-text token (one after each) and cut them into rows. The incomplete last row is
    dropped.

    With `cache_dir` the tokens are written there once and memory-mapped afterwards, so the text may exceed memory.
    """
    if cache_dir is None:
        stream = torch.from_numpy(np.concatenate(list(_token_stream(texts, tokenizer, eos_id))))
    else:
        stream = _cached_stream(texts, tokenizer, eos_id, Path(cache_dir))
    rows = stream.numel() // length
    if rows == 0:
        raise ValueError(
            f"the text has {stream.numel()} tokens, not one row of {length}: give more text or a smaller length."
        )
    return stream[: rows * length].view(rows, length)


def documents(
    texts: datasets.Dataset, tokenizer: transformers.PreTrainedTokenizerBase, length: int, eos_id: int
) -> Int[Tensor, "row position"]:
    """Return one row per document. It begins the row, and the documents after it fill the row (the last ones wrap around).

    A document longer than a row loses its end. A row never needs padding, so every position has a loss.
    """
    stream = torch.from_numpy(np.concatenate(list(_token_stream(texts, tokenizer, eos_id))))
    ends = (stream == eos_id).nonzero().flatten() + 1
    starts = ends.roll(1) % stream.numel()  # the last end is the first start
    return stream[(starts[:, None] + torch.arange(length)) % stream.numel()]


def _token_stream(
    texts: datasets.Dataset, tokenizer: transformers.PreTrainedTokenizerBase, eos_id: int
) -> Iterator[np.ndarray]:
    for batch in texts.iter(batch_size=1000):
        rows: Any = batch  # a dictionary of columns
        encoded = batch_ids(tokenizer, rows["text"])
        yield np.concatenate([np.array([*ids, eos_id], dtype=np.int64) for ids in encoded])


def _cached_stream(
    texts: datasets.Dataset, tokenizer: transformers.PreTrainedTokenizerBase, eos_id: int, folder: Path
) -> Int[Tensor, " n"]:
    vocabulary = sorted(tokenizer.get_vocab().items())
    # The fingerprint of a data set names its source and everything done to it since.
    key = hashlib.sha256(repr((texts._fingerprint, vocabulary, eos_id)).encode()).hexdigest()[:16]
    path = folder / f"tokens_{key}.int64"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")  # each process its own: several may find nothing there
        try:
            with unfinished.open("wb") as file:
                for tokens in _token_stream(texts, tokenizer, eos_id):
                    file.write(tokens.tobytes())
        except OSError as error:  # a full disk, whose error names no file
            unfinished.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(unfinished)) from error
        os.replace(unfinished, path)
    return torch.from_file(str(path), shared=False, size=path.stat().st_size // 8, dtype=torch.int64)


def train_bpe(texts: Iterable[str], vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """Train a byte-level BPE (as GPT-2's) whose id 0 is the end of text. The mask token is not in it: its id is
    `vocab_size`.

    Args:
        vocab_size: at least 257, the 256 bytes and the end of text.
    """
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size is {vocab_size}, expected at least 257 (256 bytes and the end of text): raise it."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"the text supports {tokenizer.get_vocab_size()} tokens, fewer than the {vocab_size} of bpe:{vocab_size}; use "
            f"data.tokenizer=bpe:{tokenizer.get_vocab_size()} at most, or give more text"
        )
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


class EndlessRows:
    """Shuffled batches of rows without end: a new permutation each epoch, every row once per epoch.

    The stream of rows is a pure function of `seed`. A batch may span two epochs.
    """

    prompt: int | Int[Tensor, "row"] = 0  # positions of each held-out row that are given
    left_out = 0  # rows that did not fit

    def __init__(self, rows: Int[Tensor, "row position"], seed: int = 0):
        self.rows, self.seed = rows, seed
        self.epoch = self.position = 0  # where the next batch starts
        self._permutations: dict[int, Int[Tensor, " row"]] = {}

    def next(self, batch: int) -> Int[Tensor, "batch position"]:
        """Return the next `batch` rows, int64."""
        places = self.position + torch.arange(batch)
        epochs, places = self.epoch + places // len(self.rows), places % len(self.rows)
        chosen = torch.cat([self._permutation(e)[places[epochs == e]] for e in epochs.unique().tolist()])
        ahead = self.position + batch
        self.epoch, self.position = self.epoch + ahead // len(self.rows), ahead % len(self.rows)
        return self.rows[chosen].long()

    def state_dict(self) -> dict[str, int]:
        """Return the position in the stream: epoch, number of its rows already drawn, seed and number of rows."""
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["rows"] != len(self.rows):
            raise ValueError(
                f"the saved state is for {state['rows']} rows and the data has {len(self.rows)}: resume with the same data."
            )
        self.epoch, self.position, self.seed = state["epoch"], state["position"], state["seed"]
        self._permutations.clear()

    def _permutation(self, epoch: int) -> Int[Tensor, " row"]:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._permutations[epoch] = torch.randperm(len(self.rows), generator=generator)
        return self._permutations[epoch]
