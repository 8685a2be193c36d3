"""Files of policies: `model.safetensors` with a `config.json` that rebuilds the network. Published layouts are read too.

Published: Apple's policies (keys under `base_policy.`; their architecture is inferred from the shapes, and the heads of a
`dit_hidden` from the model) and genpolicy's `.pth` (`policy_model`, `ema`, `step`).
"""

import difflib
import inspect
import json
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from dlm.checkpoints.files import fetch
from dlm.fingerprint import KEY, Fingerprint, fingerprint_of, mismatch, short_path, stored_fingerprint
from dlm.masked_lm import MaskedLM
from model.llama import LLADA_KEYS
from policy.agreement import OWN, Agreement
from policy.base import PolicyNetwork
from policy.dit_hidden import DitHidden, block_sizes
from policy.networks import DitConfidence, HiddenBlocks, HiddenMLP
from training.files import replacing_directory
from training.hub import ID
from training.storage import load_checkpoint, load_weights, save_weights
from training.stored import read_json_object
from training.terminal import printable
from training.usage import readable

POLICIES: dict[str, type[PolicyNetwork]] = {
    "agreement": Agreement,
    "dit_confidence": DitConfidence,
    "dit_hidden": DitHidden,
    "hidden_mlp": HiddenMLP,
    "hidden_blocks": HiddenBlocks,
}
# Weights by which the network is known, where no configuration names it; the first entry that is complete counts.
TYPES = {
    ("mlp.0.weight",): "hidden_mlp",
    ("mask_embedding.weight", "ada_linears.0.weight"): "dit_hidden",
    ("mask_embedding.weight", "blocks.0.attn_qkv.weight"): "hidden_blocks",
    ("mask_embedding.weight",): "dit_confidence",
    ("relations",): "agreement",
}
OWN_NAMES = {published: own for own, published in LLADA_KEYS.items() if "." not in published}  # of a block's parts


def check_fits(policy: PolicyNetwork, masked_lm) -> None:
    """Refuse, before any work, a policy whose inputs this model does not have: ValueError."""
    if policy.hidden_size and policy.hidden_size != masked_lm.hidden_size:
        raise ValueError(
            f"the policy reads hidden states of width {policy.hidden_size} but this model's are "
            f"{masked_lm.hidden_size} wide; use the model it was trained on, or train a policy for this one"
        )
    name = {DitConfidence: "confidences_top_p", Agreement: "top_k"}.get(type(policy))
    if name is not None and getattr(policy, name) > masked_lm.vocab_size - 1:
        raise ValueError(
            f"{name} {getattr(policy, name)} exceeds the {masked_lm.vocab_size - 1} tokens that this model can write; "
            f"use a policy with a smaller {name}"
        )


def bind(policy: PolicyNetwork, model: MaskedLM) -> None:
    """Store the fingerprint of the model that the policy is trained on; every file of the policy then has it."""
    policy.config[KEY] = fingerprint_of(model).as_dict()


def trained_on(policy: PolicyNetwork, path: str | Path) -> Fingerprint | None:
    """Return the fingerprint that `bind` stored; None if there is none. path: of the policy, for messages."""
    return stored_fingerprint(policy.config, path)


def check_same_model(policy: PolicyNetwork, config: dict, run: Path) -> None:
    """Refuse to resume `run`, whose checkpoint has this config, on another model: ValueError."""
    known, now = stored_fingerprint(config, run), trained_on(policy, run)
    if known is not None and now is not None and (found := mismatch(known, now)):
        raise ValueError(f"the policy of the run {run} {found}; resume it with the model that it began on")


def check_trained_on(policy: PolicyNetwork, path: str | Path, model: MaskedLM, other_model: bool) -> None:
    """Refuse another model than the policy was trained on. Policies without a fingerprint are not compared.

    Args:
        path: the policy, for the message.
        other_model: allow another model for a policy that reads no hidden states, and report it on stderr.

    Raises:
        ValueError: it is another model, and other_model is False or the policy reads hidden states.
    """
    known = trained_on(policy, path)
    found = "" if known is None else mismatch(known, fingerprint_of(model))
    if not found:
        return
    words = f"the policy {short_path(path)} {found}"
    if policy.hidden_size:
        raise ValueError(
            f"{words}, whose hidden states mean something else; use the model that it was trained on, or train a policy for this"
        )
    if not other_model:
        raise ValueError(
            f"{words}; use the model that it was trained on, or allow another one, as this policy reads confidences only "
            "(--other_model, policy={'other_model': True}, in a configuration sampler.policy.other_model=true; to train it "
            "further init_other_model=true)"
        )
    print(printable(f"{words}; it reads confidences only, and is used with --other_model"), file=sys.stderr)


def save_policy(policy: PolicyNetwork, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write `model.safetensors` (parameters in `dtype`) and `config.json`, as `save_pretrained` does.

    Buffers keep their own type, because rounded rotary frequencies would change the network. Files are moved into place
    when complete, so a killed run leaves the previous ones.
    """
    parameters = {name for name, _ in policy.named_parameters()}
    weights = {
        name: (tensor.to(dtype) if name in parameters else tensor).contiguous().cpu()
        for name, tensor in policy.state_dict().items()
    }
    with replacing_directory(directory) as part:
        (part / "config.json").write_text(json.dumps(policy.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_weights(weights, part / "model.safetensors", Path(directory) / "model.safetensors")


def load_policy(
    path: str | Path, hidden_size: int | None = None, use_ema: bool = True, model: MaskedLM | None = None,
    other_model: bool = False,
) -> PolicyNetwork:  # fmt: skip
    """Load a policy in float32, on the CPU, in evaluation mode.

    Args:
        path: any of: a directory with `model.safetensors` (and `config.json`, or a published confidence policy with keys
            under `base_policy.`); such a file itself; a `.pth` of genpolicy's layout (`policy_model`, `ema`, optionally
            `config`); a training run, by its `policy/` directory, else its newest `checkpoints/checkpoint_NUMBER.pth`; a
            hub id (OWNER/NAME) of a policy that was uploaded by `push_to_hub`.
        hidden_size: required width of a policy that reads hidden states; None accepts any.
        use_ema: use a `.pth`'s exponential moving average if it has one.
        model: the model that the policy will read (`check_fits`, `check_trained_on`); a published `dit_hidden` takes its
            heads from it.
        other_model: allow another model than the policy was trained on (`check_trained_on`).

    Raises:
        ValueError: there is no policy, its `policy_type` is unknown, keys or shapes do not fit, or the width is another.
    """
    file = policy_file(Path(path))
    if file.suffix == ".pth":
        with readable(file):
            checkpoint = load_checkpoint(file, file)
        if not isinstance(checkpoint, dict) or "policy_model" not in checkpoint:
            raise ValueError(
                f"{file} holds no policy: found {sorted(checkpoint)}, expected 'policy_model'; give a policy checkpoint"
            )
        weights, config = checkpoint["policy_model"], checkpoint.get("config", {})
        average = checkpoint.get("ema") if use_ema else None
    else:
        config_file = file.with_name("config.json")
        with readable(file):
            weights, average = load_weights(file), None
        config = read_json_object(config_file) if config_file.is_file() else {}
    policy = _build(weights, config, file, model)
    if average:
        _load_average(policy, average["shadow_params"], file)
    if hidden_size is not None and policy.hidden_size and policy.hidden_size != hidden_size:
        raise ValueError(
            f"{file} reads hidden states of width {policy.hidden_size}, expected {hidden_size}; give a policy of that "
            "width"
        )
    if KEY in config:
        policy.config[KEY] = config[KEY]
    if model is not None:
        check_trained_on(policy, path, model, other_model)  # before sizes: it names both models
        check_fits(policy, model)
    return policy.eval()


def policy_file(path: Path) -> Path:
    """Return the file that `load_policy` reads; of a hub id (OWNER/NAME) it is downloaded once, with its config.json.

    Raises:
        ValueError: there is no policy, or the hub cannot be reached.
    """
    if not path.exists() and ID.fullmatch(path.as_posix()):
        fetch(path.as_posix(), "config.json")
        return fetch(path.as_posix(), "model.safetensors")
    if path.is_file() and path.suffix in (".pth", ".safetensors"):
        return path
    numbered = {
        int(match[1]): file
        for file in path.glob("checkpoints/checkpoint_*.pth")
        if (match := re.fullmatch(r"checkpoint_(\d+)\.pth", file.name))
    }
    newest = [numbered[max(numbered)]] if numbered else []
    for file in [path / "model.safetensors", path / "policy" / "model.safetensors", *newest]:
        if file.is_file():
            return file
    raise ValueError(
        f"{path} holds no policy: expected a .pth or .safetensors file, or a directory with model.safetensors, "
        "policy/model.safetensors or checkpoints/checkpoint_NUMBER.pth; give one of these"
    )


def _build(weights: dict[str, Tensor], config: dict, file: Path, model: MaskedLM | None) -> PolicyNetwork:
    published = any(name.startswith("base_policy.") for name in weights)
    weights = {name.removeprefix("base_policy."): tensor for name, tensor in weights.items()}
    if "ada_linears.0.weight" in weights:
        weights = {_own_name(name): tensor for name, tensor in weights.items()}
    policy_type = _policy_type(weights, config, file)
    kind = POLICIES[policy_type]
    known = inspect.signature(kind.__init__).parameters
    heads = {} if model is None or kind is not DitHidden else block_sizes(model)
    arguments = heads | _arguments_from_shapes(weights) | ({"read_all": True} if published else {}) | config
    if kind is DitHidden and "num_heads" not in arguments:
        raise ValueError(
            f"{file} does not say how many heads its block has and it is not used with LLaDA or Dream; give the model that it "
            "was trained on, or num_heads in a config.json beside it"
        )
    with readable(file.with_name("config.json")):
        policy = kind(**{name: value for name, value in arguments.items() if name in known})
    _check_weights(policy.state_dict(), weights, policy_type, file)
    policy.load_state_dict(weights)
    return policy


def _policy_type(weights: dict[str, Tensor], config: dict, file: Path) -> str:
    """Return the name of the network in POLICIES: that of the configuration, otherwise a guess from the names of the weights.

    Raises:
        ValueError: the weights are not those of a policy, or the name is unknown.
    """
    guess = next((kind for names, kind in TYPES.items() if weights.keys() >= {*names}), None)
    if guess is None:
        raise ValueError(
            f"{file} holds no policy: found {sorted(weights)[:4]}; a backbone is given to --model or dlm.path"
        )
    policy_type = config.get("policy_type") or guess
    if policy_type not in POLICIES:
        near = difflib.get_close_matches(str(policy_type), POLICIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{file} has policy_type {policy_type!r}, expected one of {', '.join(POLICIES)}{hint}")
    return policy_type


def _check_weights(expected: dict[str, Tensor], weights: dict[str, Tensor], policy_type: str, file: Path) -> None:
    """Refuse weights whose names or shapes differ from those of the network: ValueError."""
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    reshaped = [
        f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or unexpected or reshaped:
        raise ValueError(
            f"{file} does not fit {policy_type}: missing keys {missing}, unexpected keys {unexpected}, "
            f"other shapes {reshaped}; give the weights and config.json of one and the same policy"
        )


def _own_name(name: str) -> str:
    """Return the name of a `dit_hidden`'s parameter in this project; published blocks have LLaDA's names."""
    if not name.startswith("transformer_blocks."):
        return name
    blocks, number, part, *rest = name.split(".")
    return ".".join((blocks, number, OWN_NAMES.get(part, part), *rest))


def _arguments_from_shapes(weights: dict[str, Tensor]) -> dict:
    """Infer the architecture from the shapes, except the time period and `read_all`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    arguments = {}
    if "mlp.0.weight" in shapes:
        arguments["hidden_size"] = shapes["mlp.0.weight"][1] - 1
    if "relations" in shapes:
        _, arguments["length"], _, arguments["relations"] = shapes["relations"]
        arguments["candidates"] = (shapes["features.weight"][1] - OWN) // (1 + 3 * arguments["relations"])
        arguments["top_k"] = max(6, arguments["candidates"])
        arguments["width"] = shapes["hidden.weight"][0]
        arguments["value_head"] = "value_proj.weight" in shapes
    if "blocks.0.attn_qkv.weight" in shapes:
        arguments["hidden_size"] = shapes["final_norm.weight"][0]
        arguments["num_heads"] = arguments["hidden_size"] // (2 * shapes["rotary.inv_freq"][0])
        arguments["num_blocks"] = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        arguments["time_embed_dim"] = shapes["time_mlp.0.weight"][0]
        arguments["value_head"] = "value_proj.weight" in shapes
    if "ada_linears.0.weight" in shapes:
        arguments["hidden_size"] = shapes["mask_embedding.weight"][1]
        arguments["num_blocks"] = len({name.split(".")[1] for name in shapes if name.startswith("ada_linears.")}) - 1
        arguments["mlp_size"] = shapes.get("transformer_blocks.0.gate.weight", (0,))[0]
        arguments["time_embed_dim"] = shapes["time_mlp.0.weight"][1]
        arguments["value_head"] = "value_proj.weight" in shapes
    if "confidence_proj.weight" in shapes:
        arguments["hidden_dim"], arguments["confidences_top_p"] = shapes["confidence_proj.weight"]
        arguments["num_blocks"] = len({name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")})
        arguments["value_head"] = "value_proj.weight" in shapes
        arguments["repulsion"] = shapes.get("repulsion", (0,))[0]
        arguments["hidden_size"] = shapes.get("hidden_norm.weight", (0,))[0]
        if "time_mlp.0.weight" in shapes:
            arguments["time_embed_dim"] = shapes["time_mlp.0.weight"][1]
        if "transformer_blocks.0.linear1.weight" in shapes:
            arguments["feedforward_dim"] = shapes["transformer_blocks.0.linear1.weight"][0]
        if "transformer_blocks.0.inv_freq" in shapes:
            arguments["num_heads"] = arguments["hidden_dim"] // (2 * shapes["transformer_blocks.0.inv_freq"][0])
    return arguments


def _load_average(policy: PolicyNetwork, shadow: list[Tensor], file: Path) -> None:
    parameters = list(policy.parameters())
    if [tensor.shape for tensor in shadow] != [parameter.shape for parameter in parameters]:
        raise ValueError(
            f"{file} holds a moving average of {len(shadow)} tensors that do not fit the policy's {len(parameters)} "
            "parameters; load the weights themselves with use_ema=False"
        )
    with torch.no_grad():
        for parameter, average in zip(parameters, shadow, strict=True):
            parameter.copy_(average)
