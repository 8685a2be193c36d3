"""Exit status of the commands: 2 for bad input, with one sentence; 1 for a failure. Escaping of text in settings."""

from __future__ import annotations

import difflib
import io
import os
import re
import shlex
import signal
import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training import interrupt
from training.files import Unwritable
from training.launcher import tell_launcher
from training.stored import escaped
from training.terminal import printable

CONFIGS = Path(__file__).parents[1] / "configs"
MOST_LISTED = 20  # choices that a message lists


def _configs() -> AbstractContextManager:
    """Context manager: the search path of configurations; Hydra's own commands have it already."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_dir(str(CONFIGS), version_base=None)


def literal(text: str) -> str:
    """Return a text as a value of a configuration that is read back unchanged: `${` begins no interpolation.

    Raises:
        ValueError: the text is `???`, which is OmegaConf's missing value.
    """
    if text == "???":
        raise ValueError("the text '???' stands for a missing value in a configuration; write another text")
    return escaped(text)


def override(key: str, text: str) -> str:
    """Return KEY=VALUE for Hydra, for any text: quotes, brackets, commas, accents, `=`, `${`."""
    return f"{key}={QuotedString(literal(text), Quote.double).with_quotes()}"


def check_readable_overrides(overrides: list[str]) -> None:
    """Refuse an override whose value Hydra's grammar cannot parse, or parses as a sweep, or a list of files of one group.

    Raises:
        ValueError: has the value in quotes, or the name of the group.
    """
    for given in overrides:
        key, equals, value = given.partition("=")
        deletes = key.startswith("~")
        if not re.fullmatch(r"[+~]{0,2}[\w./@-]+", key) or not (equals or deletes):
            raise ValueError(f"{given!r} is no KEY=VALUE; write the key, an equals sign and the value")
        try:
            read = OverridesParser.create().parse_override(given)
            if not read.is_sweep_override():
                group = key.lstrip("+~")
                if isinstance(read.value(), list) and (CONFIGS / group).is_dir():
                    raise ValueError(f"{given!r}: {group} takes the name of one file of configs/{group}; give one")
                continue
        except HydraException:
            pass
        quoted = shlex.quote(override(key, value))
        raise ValueError(f"{given!r} has a value that needs quotes; to take it as text, write {quoted}")


def commands_of(experiment: str) -> list[str]:
    """Return the commands that an experiment belongs to, by the line `# command:` of its file; empty for a file that does not
    exist.
    """
    file = CONFIGS / "experiment" / f"{experiment}.yaml"
    named = re.search(r"^# command: (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if file.is_file() else None
    return named[1].split(", ") if named else []


def check_experiment(name: str, overrides: list[str]) -> None:
    """Refuse an experiment of another command: ValueError names the right one."""
    for given in overrides:
        key, _, experiment = given.partition("=")
        commands = commands_of(experiment) if key == "experiment" and re.fullmatch(r"[\w-]+", experiment) else []
        if commands and name.replace("_", "-") not in commands:
            raise ValueError(f"{given} does not fit configs/{name}.yaml; it belongs to {' and '.join(commands)}")


def composed(name: str, overrides: list[str]) -> DictConfig:
    """Return the configuration NAME with these overrides. ValueError describes in one sentence what does not fit, and the
    nearest key.
    """
    check_readable_overrides(overrides)
    check_experiment(name, overrides)
    try:
        with _configs():
            return compose(name, overrides)
    except HydraException as error:
        message = " ".join(str(error).split("Config search path")[0].split())
        with _configs():
            raise ValueError(_misfit(name, overrides, message)) from error


def _misfit(name: str, overrides: list[str], message: str) -> str:
    """Return one sentence in place of Hydra's long message: the override that does not fit, and the nearest valid one."""
    missing = re.search(r"Could not find '([\w/]+)/([^/']*)'", message)
    if missing and (CONFIGS / missing[1]).is_dir():
        return _unknown_choice(*missing.groups())
    unknown = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", message)
    given = [word for word in overrides if unknown and word.lstrip("+~").partition("=")[0] == unknown[1]]
    if unknown is None or not given:
        return f"{' '.join(overrides)!r} does not fit configs/{name}.yaml: {message}"
    return _unknown_key(name, given[0], unknown[1])


def _unknown_choice(group: str, choice: str) -> str:
    """Describe the choice of a file that a group does not have."""
    options = sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))
    near = difflib.get_close_matches(choice, options, n=1)
    listed = f"use one of {', '.join(options)}" if len(options) <= MOST_LISTED else "look there for what exists"
    found = f"did you mean {group}={near[0]}?" if near else listed
    return f"{group}={choice} is no file of configs/{group}; {found}"


def _unknown_key(name: str, given: str, key: str) -> str:
    """Describe an override whose key the configuration lacks, or has as a group of keys."""
    page = f"configs/{name}.yaml"
    known = _keys(OmegaConf.to_container(compose(name), resolve=False)) + _groups(name)
    last = key.rpartition(".")[2]
    before = key.removesuffix(last)
    beside = {each.removeprefix(before).partition(".")[0] for each in known if each.startswith(before)}
    inside = sorted({each.removeprefix(f"{key}.") for each in known if each.startswith(f"{key}.")})
    if last in beside and inside:
        return f"{given!r} takes the place of several keys of {page}; set one of {key}.{{{', '.join(inside)}}}"
    elsewhere = [each for each in known if not before or not each.startswith(before)]
    begun = sorted(each for each in beside if each.startswith(last))  # alg: the beginning of algorithm
    near = [before + each for each in (*difflib.get_close_matches(last, beside, n=1), *begun)]
    near += difflib.get_close_matches(key, elsewhere, n=1)
    if near:
        return f"{given!r} names no key of {page}; did you mean {near[0]}?"
    return f"{given!r} names no key of {page}; {before.rstrip('.') or 'it'} has {', '.join(sorted(beside)) or 'none'}"


def _groups(name: str) -> list[str]:
    """Return the config groups of configs/`name`.yaml."""
    chosen = [
        entry
        for entry in OmegaConf.select(OmegaConf.load(CONFIGS / f"{name}.yaml"), "defaults", default=[])
        if isinstance(entry, DictConfig)
    ]
    return [group for entry in chosen for group in map(str, entry) if not group.startswith("override ")]


def _keys(values: object, prefix: str = "") -> list[str]:
    """Return the dotted path of every value in nested dictionaries."""
    if not isinstance(values, dict):
        return [prefix.removesuffix(".")]
    return [found for key, value in values.items() for found in _keys(value, f"{prefix}{key}.")]


@contextmanager
def readable(file: Path | str):
    """Context manager: convert errors of a truncated or foreign checkpoint to one sentence that names it."""
    try:
        yield
    except Exception as error:  # a parser may raise anything for junk
        if type(error) is ValueError:  # one of ours, with a better message
            raise
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{file} cannot be read ({message[:120]}); it is damaged or no checkpoint, give another"
        ) from error


def check_overrides(name: str, overrides: list[str]) -> None:
    """Refuse overrides of the command line that do not fit, before Hydra prints a long message. Hydra's own flags are left
    to it.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    known = [name for action in get_args_parser()._actions for name in action.option_strings]
    for flag in (word.partition("=")[0] for word in overrides if word.startswith("--")):
        if flag not in known:  # argparse would take the beginning of a longer one for it
            raise ValueError(f"{flag!r} is no flag of this command; write {flag.lstrip('-')}=VALUE, and see --help")
    if not any(word.startswith("-") for word in overrides):
        composed(name, overrides)


def print_anything() -> None:
    """Make stdout and stderr escape characters that the terminal's encoding lacks, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_bad_input(error: ValueError) -> bool:
    """Return whether an error is one that the user can correct: a plain ValueError, or a subclass that this project defines.

    Subclasses of libraries (UnicodeError, JSONDecodeError) count only if they were converted to a ValueError that names the file.
    """
    module = sys.modules[type(error).__module__]
    return type(error) is ValueError or CONFIGS.parent in Path(vars(module).get("__file__") or "/").parents


def _leave(message: str, status: int) -> NoReturn:
    """Exit with one sentence, on stderr and in the report of a launcher."""
    sentence = f"error: {printable(message)}"
    print(sentence, file=sys.stderr)
    tell_launcher(sentence)
    sys.exit(status)


@contextmanager
def exit_on_bad_input():
    """Context manager for commands.

    ValueError is bad input: its sentence goes to stderr and the status is 2. The same holds for an interpolation without a
    target. FloatingPointError (a loss that is not a number) is a failure: status 1. Anything else is a defect and keeps its
    traceback.
    """
    print_anything()
    before = signal.getsignal(signal.SIGINT)
    if before is interrupt.end:  # from here on the work may want to save first
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except OmegaConfBaseException as error:
        key, message = error.full_key or "a setting", str(error).splitlines()[0]
        _leave(f"{key}: {message}; to write ${{ as text, put a backslash before it", 2)
    except HydraException as error:  # its own flags and groups
        _leave(f"{str(error).strip().splitlines()[0]}; see --hydra-help", 2)
    except ValueError as error:
        if not is_bad_input(error):
            raise
        _leave(str(error), 2)
    except FloatingPointError as error:
        _leave(str(error), 1)
    except OSError as error:
        if not isinstance(error, Unwritable) and error.filename is None:
            raise
        _leave(
            str(error) if isinstance(error, Unwritable) else f"{error.filename} cannot be used ({error.strerror})", 1
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    finally:
        if before is interrupt.end:
            signal.signal(signal.SIGINT, before)
