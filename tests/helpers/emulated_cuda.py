"""A CUDA device made of host memory: what will run on a GPU is tested on a machine without one.

    python -m pytest -p tests.helpers.emulated_cuda -m cuda tests/test_cuda.py
    python -m tests.helpers.emulated_cuda run_sample.py --device cuda --strategy direct

Either line installs the device for its whole process: PyTorch cannot give it up again, and `device=auto` takes it. So the tests of
one process either all see it, or none does. Tensors are real tensors on `cuda:0`, computed by the CPU's kernels: results are those of
the CPU, and there are no times. What CUDA refuses is refused with its words: a CPU tensor beside a device tensor, a CPU generator,
`.numpy()`, a product of integers. `watch` records kernel launches and waits of the host by the line of the project that caused them.

Not emulated: several devices, asynchronous errors, Triton, NCCL, flash-attn. `emulated_cuda.cpp` is compiled once (half a minute;
$CXX, by default g++) and kept in $XDG_CACHE_HOME/unmask. It was written for PyTorch 2.13.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

LAUNCH, WAIT = 1, 2  # events, as in emulated_cuda.cpp
ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_suffix(".cpp")
LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int)


def missing() -> str | None:
    """Why the device cannot be installed here; None where it can."""
    compiler = os.environ.get("CXX", "g++")
    if torch.version.cuda is not None:
        return "this PyTorch has CUDA itself; the emulated device is for one that was built for the CPU"
    if shutil.which(compiler) is None:
        return f"the emulated CUDA device is compiled once, and there is no C++ compiler {compiler}"
    return None


# ------------------------------------------------------------------------------------------------------------ the library


def library_path() -> Path:
    """The compiled library of this source and this PyTorch; compiled where it is not there yet.

    Two processes may compile at once: each writes a file of its own, and renames it.
    """
    home = Path(torch.__file__).parent
    source = SOURCE.read_bytes()
    digest = hashlib.sha256(source + f"{torch.__version__} {home}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unmask"
    built = folder / f"emulated_cuda_{digest}.so"
    if built.exists():
        return built
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = built.with_suffix(f".{os.getpid()}.so")
    command = [
        os.environ.get("CXX", "g++"), "-O1", "-std=c++20", "-shared", "-fPIC", "-w",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}", f"-I{home / 'include'}", str(SOURCE),
        "-o", str(unfinished), f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} does not compile with PyTorch {torch.__version__}:\n{done.stderr[-4000:]}")
    os.replace(unfinished, built)
    return built


def operation_kinds() -> tuple[list[str], list[str]]:
    """From PyTorch's list of operations: those that take a CPU number beside device tensors, and those for which CUDA has a kernel
    and other devices a composition of several."""
    import torchgen

    unchecked, composite = [], []
    listed = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    for block in listed.read_text().split("\n- func: ")[1:]:
        name = block.split("(")[0]
        if re.search(r"^  device_check: NoCheck", block, re.M):
            unchecked.append(name)
        keys = {key.strip() for line in re.findall(r"^    ([\w, ]+): \S", block, re.M) for key in line.split(",")}
        # Of this norm the gradient is a kernel that a CPU lacks: the composition has one.
        if "CUDA" in keys and any(key.startswith("Composite") for key in keys) and name != "_fused_rms_norm":
            composite.append(name)
    return unchecked, composite


def install() -> None:
    """Give this process a CUDA device, for good. Raises RuntimeError with the reason where that cannot be."""
    global _library
    if (reason := missing()) is not None:
        raise RuntimeError(reason)
    if _library is not None:
        return
    library = ctypes.PyDLL(str(library_path()))
    library.emulated_cuda_install.restype = ctypes.c_char_p
    library.emulated_cuda_held.restype = library.emulated_cuda_peak.restype = ctypes.c_int64
    error = library.emulated_cuda_install(*(" ".join(names).encode() for names in operation_kinds()))
    if error is not None:
        raise RuntimeError(f"the emulated CUDA device cannot be installed: {error.decode()}")
    _library = library
    _fill_torch_cuda(library)


_library: ctypes.PyDLL | None = None


# ------------------------------------------------------------------------------------------------------------ torch.cuda


class Stream:
    """A stream, or an event, of a device that does everything at once."""

    cuda_stream, device, device_index = 0, torch.device("cuda", 0), 0

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def synchronize(self):
        _report(b"cudaStreamSynchronize", WAIT)

    def query(self):
        return True

    record = wait = wait_stream = wait_event = record_event = lambda self, *_: None


def _fill_torch_cuda(library: ctypes.PyDLL) -> None:
    """Make `torch.cuda` that of a machine with one card."""
    cuda = torch.cuda
    card = types.SimpleNamespace(
        name="Emulated CUDA device",
        major=9,
        minor=0,
        total_memory=80 * 2**30,
        multi_processor_count=132,
        gcnArchName="",
    )
    generator = torch.Generator(device="cuda")
    stream = Stream()
    nothing = lambda: lambda *_, **__: None  # torch.compile wants a function of its own for each name
    values = dict(
        _lazy_init=nothing(), _lazy_call=lambda call, **_: call(), init=nothing(), _initialized=True,
        is_initialized=lambda: True, is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
        set_device=nothing(), _exchange_device=lambda device: 0, _maybe_exchange_device=lambda device: 0, device=Stream,
        device_of=Stream, get_device_name=lambda *_: card.name, get_device_properties=lambda *_: card,
        get_device_capability=lambda *_: (9, 0), is_bf16_supported=lambda *_, **__: True,
        synchronize=lambda *_: _report(b"cudaDeviceSynchronize", WAIT), empty_cache=nothing(),
        memory_allocated=lambda *_: library.emulated_cuda_held(), memory_reserved=lambda *_: library.emulated_cuda_held(),
        max_memory_allocated=lambda *_: library.emulated_cuda_peak(),
        reset_peak_memory_stats=lambda *_: library.emulated_cuda_reset_peak(),
        default_generators=(generator,), manual_seed=lambda seed: generator.manual_seed(int(seed)),
        manual_seed_all=lambda seed: generator.manual_seed(int(seed)), seed=lambda: generator.seed(),
        initial_seed=lambda: generator.initial_seed(), get_rng_state=lambda *_: generator.get_state(),
        get_rng_state_all=lambda: [generator.get_state()], set_rng_state=lambda state, *_: generator.set_state(state),
        set_rng_state_all=lambda states: generator.set_state(states[0]), Stream=Stream, Event=Stream,
        stream=lambda stream: stream, current_stream=lambda *_: stream, default_stream=lambda *_: stream,
        is_current_stream_capturing=lambda: False,
    )  # fmt: skip
    for name, value in values.items():
        for module in (cuda, cuda.random, cuda.memory):
            if module is cuda or (hasattr(module, name) and not name.startswith("_")):
                setattr(module, name, value)

    # A PyTorch built for the CPU makes no storage of another device; torch.load asks for one.
    make_storage = torch.UntypedStorage.__new__

    def storage(cls, *size, device=None, **settings):
        if device is None or torch.device(device).type != "cuda":
            return make_storage(cls, *size, **({} if device is None else {"device": device}), **settings)
        return torch.empty(size[0] if size else 0, dtype=torch.uint8, device=device).untyped_storage()

    torch.UntypedStorage.__new__ = staticmethod(storage)  # pyright: ignore


# ------------------------------------------------------------------------------------------------------------ what it did

Line = tuple[str, int]  # a file, relative to the project, and a line; of a backward pass, which has none: ("", 0)


@dataclass
class Seen:
    """Launches and waits, counted by the line of the project and the operation."""

    launches: Counter[tuple[Line, str]] = field(default_factory=Counter)
    waits: Counter[tuple[Line, str]] = field(default_factory=Counter)

    def record(self, operation: str, event: int) -> None:
        key = _line(), operation
        self.launches[key] += bool(event & LAUNCH)
        self.waits[key] += bool(event & WAIT)

    def table(self) -> str:
        """The lines that wait or launch, in descending order of their number."""
        rows = [f"{self.launches.total()} launches, {self.waits.total()} waits; waits by line:"]
        rows += [
            f"{count:7d}  {file}:{line}  {name}" for ((file, line), name), count in self.waits.most_common() if count
        ]
        return "\n".join(rows)


def _line() -> Line:
    """The innermost line of the project."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(str(ROOT)) and "/.venv/" not in file and file != __file__:
            return file[len(str(ROOT)) + 1 :], frame.f_lineno
        frame = frame.f_back
    return "", 0


_watching: list[Seen] = []


@LISTENER
def _report(operation: bytes, event: int) -> None:
    for seen in _watching:
        seen.record(operation.decode(), event)


@contextmanager
def watch() -> Iterator[Seen]:
    """Record what the device is asked for meanwhile."""
    assert _library is not None
    seen = Seen()
    _watching.append(seen)
    _library.emulated_cuda_listen(_report)
    try:
        yield seen
    finally:
        _watching.remove(seen)
        if not _watching:
            _library.emulated_cuda_listen(None)


def pytest_configure(config) -> None:
    """As a plugin (-p tests.helpers.emulated_cuda): every test of the process sees the device."""
    install()


if __name__ == "__main__":
    install()
    sys.modules["tests.helpers.emulated_cuda"] = sys.modules["__main__"]  # one copy, whoever imports it
    sys.path[0] = str(Path(sys.argv[1]).resolve().parent)
    del sys.argv[0]
    with watch() as seen:
        runpy.run_path(sys.argv[0], run_name="__main__")
    print(seen.table(), file=sys.stderr)
