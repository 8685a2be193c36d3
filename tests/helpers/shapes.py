"""Checks of types and shapes in signatures at less than half the cost of jaxtyping's import hook.

The hook of `--jaxtyping-packages` decorates every function and class. Its decorator binds the arguments of each call by `inspect`, and
checks them twice: before the call, and again with the result. `checked` takes its place: beartype checks the arguments once and
the result once, in one jaxtyping context, so that a dimension has the same size in all of them. A call whose tensors have the types
and shapes of a call that passed passes too. Two things differ: an argument that the function changes is not checked again, and a
dimension cannot name an argument's value (`"{n}"`), which no signature does.
"""

import inspect
import re
import threading
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, update_wrapper, wraps
from types import FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

import jaxtyping
from beartype import beartype
from jaxtyping import _decorator, _import_hook, config
from jaxtyping._storage import pop_shape_memo, push_shape_memo
from torch import Tensor

jaxtyped = jaxtyping.jaxtyped
CONTAINERS = re.compile(r"\b(list|dict|set|frozenset|Sequence|Iter\w+|Mapping|Collection|Literal|type)\[|ndarray")
INNER: dict[tuple, tuple[Callable, dict | None]] = {}


class Pending(threading.local):
    """The calls of this thread whose arguments are being checked; a check may read a property, which is a call too."""

    def __init__(self) -> None:
        self.calls: list[Callable] = []


PENDING = Pending()


def checked(target: Any) -> Any:
    """Check the arguments and the result of a function at each call; of a data class, its fields."""
    if inspect.isclass(target):
        if is_dataclass(target) and target.__init__.__globals__ is not globals():
            target.__init__ = checked(target.__init__)
        return target
    if inspect.isgeneratorfunction(
        target
    ):  # its arguments are checked when it is first iterated over, outside the context
        return jaxtyped(target, typechecker=beartype)
    hints = {
        name: _decorator._destring_annotation(hint, target.__globals__) for name, hint in target.__annotations__.items()
    }
    if not has_known_kinds(hints) and "<locals>" not in target.__qualname__:
        return _each_call_checked(target, hints)
    typed, known = _checks(target, hints)

    @wraps(target)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return target(*args, **kwargs)
        given = (
            (*map(kind, args), *((name, kind(value)) for name, value in kwargs.items())) if known is not None else ()
        )
        if known and given in known:
            result = target(*args, **kwargs)
            if kind(result) in known[given]:
                return result
            body = lambda *args, **kwargs: result
        else:
            body = target
        depth = len(PENDING.calls)
        PENDING.calls.append(body)
        push_shape_memo({})
        try:
            result = typed(*args, **kwargs)
        finally:
            pop_shape_memo()
            del PENDING.calls[depth:]
        if known is not None:
            known.setdefault(given, set()).add(kind(result))
        return result

    return call


def kind(value: Any) -> Any:
    """Return all that a check of this value depends on, unless the hint looks into a container."""
    if isinstance(value, Tensor):
        return type(value), value.dtype, value.shape
    return (type(value), *map(kind, value)) if isinstance(value, tuple) else type(value)


def has_known_kinds(hints: dict[str, Any]) -> bool:
    """Return whether `kind` says all that a check by these hints depends on.

    Checks of other values than tensors are cheap, and those of containers depend on what these hold.
    """
    text = " ".join(map(str, hints.values()))
    return "[Tensor" in text and CONTAINERS.search(text) is None


def _each_call_checked(target: FunctionType, hints: dict[str, Any]) -> Callable:
    """Return the function with a check of every call. It takes few frames, so that recursion is as deep as without checks."""
    resolved = FunctionType(
        target.__code__, target.__globals__, target.__name__, target.__defaults__, target.__closure__
    )
    update_wrapper(resolved, target).__kwdefaults__ = target.__kwdefaults__
    del resolved.__wrapped__
    resolved.__annotations__ = hints
    typed = beartype(resolved)

    @wraps(target)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return target(*args, **kwargs)
        push_shape_memo({})
        try:
            return typed(*args, **kwargs)
        finally:
            pop_shape_memo()

    return call


def _checks(target: FunctionType, hints: dict[str, Any]) -> tuple[Callable, dict | None]:
    """Return a check of the pending call by a function's hints, and the kinds of arguments that passed with those of their results.

    A call whose arguments and result are of known kinds passes without a check; the kinds are None if they do not say all. A
    function inside a function is defined anew at each call of the outer one, and shares its checks, which take long to make.
    """
    name = (target.__module__, target.__qualname__, target.__code__)
    if "<locals>" in target.__qualname__ and name in INNER:
        return INNER[name]

    @wraps(target)
    def body(*args, **kwargs):
        return PENDING.calls.pop()(*args, **kwargs)

    body.__annotations__ = hints
    INNER[name] = beartype(body), {} if has_known_kinds(hints) else None
    return INNER[name]


def execute(loader: _import_hook._JaxtypingLoader, module: ModuleType) -> None:
    """Execute a module whose functions are checked.

    jaxtyping redirects the cache of bytecode until the module is executed, and so for every library that the module imports:
    each process would compile all of transformers and sympy again. Here it is redirected for the module's own bytecode only.
    """
    redirected = partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", redirected):
        code = loader.get_code(module.__name__)
    exec(code, module.__dict__)


def install() -> None:
    """Make jaxtyping's import hook decorate by `checked`, in the modules that are imported from now on."""
    _import_hook._JaxtypingLoader.exec_module = execute
    jaxtyping.jaxtyped = lambda *, typechecker: checked
