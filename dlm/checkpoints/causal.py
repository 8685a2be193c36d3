"""Any causal model of transformers. Its class builds the network and reads the weights; no code of a checkpoint runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm.causal_lm import CausalLM
from dlm.checkpoints.family import Family
from dlm.checkpoints.fill import OLD_BUFFERS, fill, refuse_misfit
from dlm.checkpoints.source import CheckpointSource
from dlm.checkpoints.weights import unwrapped
from training.hub import hide_weight_bars
from training.storage import check_files, check_read


class Causal(Family):
    """The fallback family: any causal model of transformers, which is imported when needed."""

    is_causal = True

    def recognises(self, config: dict[str, Any]) -> bool:
        return True

    def build(self, config: dict[str, Any], dtype: str, tokenizer: Any, name: str = "") -> CausalLM:
        return self._built(config, torch.float32, dtype, tokenizer, name)

    def load(
        self, source: CheckpointSource, config: dict[str, Any], tokenizer: Any, dtype: str, device: torch.device
    ) -> CausalLM:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if config["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(
                f"{source.name} is of type {config['model_type']}, of which transformers has no causal model, and code that "
                "comes with a checkpoint is never run; choose another"
            )
        precision = getattr(torch, dtype)
        if source.run is None:
            return _as_masked_lm(self._pretrained(source, config, precision), dtype, tokenizer, source.name)
        state = self.run_weights(source, config)
        model = self._built(config, precision, dtype, tokenizer, source.name)
        fill(model.backbone, state, source.name)
        return model

    def _built(self, config: dict[str, Any], precision: torch.dtype, dtype: str, tokenizer: Any, name: str) -> CausalLM:
        """Build a new model. precision: of the weights; dtype: of the computation."""
        from transformers import AutoConfig, AutoModelForCausalLM

        settings = AutoConfig.for_model(**config)
        backbone = AutoModelForCausalLM.from_config(settings, dtype=precision, trust_remote_code=False)
        return _as_masked_lm(backbone, dtype, tokenizer, name)

    def _pretrained(self, source: CheckpointSource, config: dict[str, Any], precision: torch.dtype) -> Any:
        """Return the network with its stored weights. transformers reads them and checks names and shapes."""
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        hide_weight_bars()
        saved = self._wrapped_weights(source, config)
        check_files(source.folder)
        settings: Any = None if saved is None else AutoConfig.for_model(**config)
        kind: Any = AutoModelForCausalLM if saved is None else MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
        try:
            backbone, found = kind.from_pretrained(
                source.folder if saved is None else None, config=settings, state_dict=saved, dtype=precision,
                output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(f"{source.name} has a config.json but its weights cannot be had: {error}") from error
        refuse_misfit(
            source.name, backbone, found["missing_keys"],
            [name for name in found["unexpected_keys"] if not name.endswith(OLD_BUFFERS)],
            [f"{name} is {tuple(is_)}, expected {tuple(due)}" for name, is_, due in found["mismatched_keys"]],
        )  # fmt: skip
        check_read(backbone.named_parameters(), source.name)
        return backbone

    def _wrapped_weights(self, source: CheckpointSource, config: dict[str, Any]) -> dict[str, Tensor] | None:
        """Return the weights of a local checkpoint that was saved from a wrapped model, under the model's own names; None
        for others.

        Refuses an index with files outside of the directory, which transformers would follow.
        """
        if not source.is_local:
            return None
        with source.described(), torch.device("meta"):
            expected = self.build(config, "float32", None).backbone.state_dict()
        if all(own == name for name, own in unwrapped(source.weight_names, expected).items()):
            return None
        return source.weights(expected.keys())


def _as_masked_lm(backbone: Any, dtype: str, tokenizer: Any, name: str) -> CausalLM:
    """Wrap the network. The start token is the beginning of sequence, or the end of sequence for models without one."""
    config = backbone.config
    start = config.eos_token_id if config.bos_token_id is None else config.bos_token_id
    return CausalLM(backbone, start, dtype, tokenizer, name)


CAUSAL = Causal()
