"""Checks of types and shapes in signatures at less than half the cost of jaxtyping's import hook.

The hook of `--jaxtyping-packages` decorates every function and class. Its decorator binds the arguments of each call by `inspect`, and
checks them twice: before the call, and again with the result. `checked` takes its place: beartype checks the arguments once and
the result once, in one jaxtyping context, so that a dimension has the same size in all of them. Two things differ: an argument
that the function changes is not checked again, and a dimension cannot name an argument's value (`"{n}"`), which no signature does.
"""

import inspect
from dataclasses import is_dataclass
from functools import partial, update_wrapper, wraps
from types import FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

import jaxtyping
from beartype import beartype
from jaxtyping import _decorator, _import_hook, config
from jaxtyping._storage import pop_shape_memo, push_shape_memo

jaxtyped = jaxtyping.jaxtyped


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
    resolved = FunctionType(
        target.__code__, target.__globals__, target.__name__, target.__defaults__, target.__closure__
    )
    update_wrapper(resolved, target).__kwdefaults__ = target.__kwdefaults__
    del resolved.__wrapped__
    resolved.__annotations__ = {
        name: _decorator._destring_annotation(hint, target.__globals__) for name, hint in target.__annotations__.items()
    }
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
