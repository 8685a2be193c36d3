"""Copy stored weights into a network: every name, shape and number type must fit, and every number must be finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from training.storage import check_read

# Masks and angles that old causal checkpoints carry beside their weights.
OLD_BUFFERS = ("attn.bias", "attention.bias", "masked_bias", "inv_freq")


def fill(backbone: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Copy weights into a network as float32. name: of the checkpoint, for messages. ValueError if they do not fit."""
    expected = backbone.state_dict()
    wrong = [f"{name} is {complaint}" for name, due in expected.items()
             if name in state and (complaint := misfit(state[name], due))]  # fmt: skip
    refuse_misfit(name, backbone, expected.keys() - state.keys(), state.keys() - expected.keys(), wrong)
    check_read(state.items(), name)
    backbone.load_state_dict({name: tensor.float() for name, tensor in state.items()})


class Stored(NamedTuple):
    """A stored weight.

    name: in its file; plain: without the prefix of a wrapper; place: " in FILE" for messages, or empty; tensor: on the CPU.
    """

    name: str
    plain: str
    place: str
    tensor: Tensor


def fill_streaming(
    backbone: nn.Module, stored: Iterable[Stored], own: dict[str, str], name: str, to: Callable[[Tensor], Tensor]
) -> None:
    """Give a network on the device `meta` its weights, with one stored tensor in memory at a time.

    Args:
        backbone: the network.
        stored: every stored weight.
        own: plain name -> name in the network, of every weight that is required.
        name: of the checkpoint, for messages.
        to: moves a tensor to its device and precision.

    Raises:
        ValueError: names, shapes or number types do not fit, or a number is not finite; names the checkpoint.
    """
    expected, weights = backbone.state_dict(), {}
    unexpected, wrong = [], []
    for weight in stored:
        place = own.get(weight.plain)
        if place is None:
            unexpected.append(weight.name)
        elif complaint := misfit(weight.tensor, expected[place]):
            wrong.append(f"{weight.name}{weight.place} is {complaint}")
        else:
            check_read([(weight.name, weight.tensor)], f"{name}{weight.place}")
            weights[place] = to(weight.tensor)
    missing = [plain for plain, place in own.items() if place not in weights and not wrong]
    refuse_misfit(name, backbone, missing, unexpected, wrong)
    backbone.load_state_dict(
        weights, strict=False, assign=True
    )  # a head that is the embedding has no weight of its own


def misfit(tensor: Tensor, due: Tensor) -> str:
    """Describe how a stored weight differs from the expected one: shape or number type (quantised weights); empty if it
    fits.
    """
    if tensor.shape != due.shape:
        return f"{tuple(tensor.shape)}, expected {tuple(due.shape)}"
    if due.is_floating_point() != tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')}, expected float32, bfloat16 or float16"
    return ""


def refuse_misfit(
    name: str, backbone: nn.Module, missing: Iterable[str], unexpected: Iterable[str], wrong: list[str]
) -> None:
    """Raise ValueError if a checkpoint does not fit its network."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    if missing or unexpected or wrong:
        raise ValueError(
            f"the checkpoint {name} does not fit its config: missing {missing[:4]} ({len(missing)}), "
            f"unexpected {unexpected[:4]} ({len(unexpected)}), shapes {wrong[:2]}; check that it is a "
            f"{type(backbone).__name__} checkpoint and that config.json belongs to it"
        )
