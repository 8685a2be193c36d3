"""The base class of policy networks."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from dlm.observation import Observation
from policy.conditions import AlphaEmbedding


class PolicyNetwork(nn.Module, PyTorchModelHubMixin):
    """A network that scores every position of an observation, to choose the positions to unmask next.

    A subclass sets `policy_type`, defines `inputs` and `scores`, and replaces those of the parts below that it has.

    Attributes:
        output_proj: the last layer, whose bias is added to every score; `extensible` networks only.
        value_proj: head of the state's value, which PPO needs.
        alpha_embedding: embedding of the weight of speed, for policies that are trained with `reward.alphas`.
        reopen_proj: the last layer of the logits of opening committed positions again, for policies that revise.
        repulsion: learned repulsion between positions of one decoding step, by distance (`policy.actions.FixedCount`).
    """

    policy_type: ClassVar[str] = ""  # the name in config.json and of `policy.policy_type`
    extensible: ClassVar[bool] = True  # has `output_proj`; the constructor takes `value_head` and `alpha_conditioned`
    hidden_size: int = 0  # width of the hidden states that the network reads; 0: it reads none
    output_proj: nn.Linear
    value_proj: nn.Linear | None
    alpha_embedding: AlphaEmbedding | None
    reopen_proj: nn.Linear | None
    repulsion: nn.Parameter | None

    def __init__(self):
        super().__init__()
        # In the instance, not in the class: an attribute of the class would hide a module of that name.
        self.value_proj = self.alpha_embedding = self.reopen_proj = self.repulsion = None
        if self.policy_type:
            self.config["policy_type"] = self.policy_type

    @property
    def config(self) -> dict[str, Any]:
        """Contents of config.json: the constructor's arguments, `policy_type`, the fingerprint of the model."""
        assert isinstance(self._hub_mixin_config, dict)  # of the constructor's arguments
        return self._hub_mixin_config

    @property
    def revises(self) -> bool:
        """True if the scores of committed positions are logits of opening them again."""
        return self.reopen_proj is not None

    def inputs(self, observation: Observation, everywhere: bool = False) -> dict[str, Tensor]:
        """Return the inputs of `scores` for an observation: tensors that may be stored and replayed.

        Args:
            everywhere: also at positions that are not open; read by networks with a masking channel.
        """
        raise NotImplementedError

    def scores(self, **inputs: Tensor) -> Float[Tensor, "row position"]:
        """Return the unmasking logit of every open position and, of a network that revises, the logit of opening a committed
        position again."""
        return self(**inputs)

    def forward_with_value(self, **inputs: Tensor) -> tuple[Float[Tensor, "row position"], Float[Tensor, "row"]]:
        """Return the unmasking logits and the value of the state. ValueError for a network without a value head."""
        raise ValueError(f"{type(self).__name__} has no value head; build the policy with value_head=True")
