"""Names of all strategies. No other module is imported, so that `--help` can list them without loading torch."""

from __future__ import annotations

RULES = (  # unmasking rules that learn nothing
    "direct",
    "first_hitting",
    "random",
    "dilated",
    "confidence",
    "confidence_noisy",
    "top_prob",
    "entropy",
    "threshold",
    "window",
    "factor",
    "entropy_bound",
    "leftmost",
)
STRATEGIES = (*RULES, "policy")  # an unmasking rule and a token sampler
# Decoders that open committed positions again or replace their tokens.
REVISING = ("remdm", "p2", "wino", "prism", "edit", "informed")
# Decoders that remember steps or evaluate candidate canvases.
SELECTING = ("klass", "slowfast", "credit", "punt", "lopa")
DECODERS = (*REVISING, *SELECTING)  # their settings are in a section of their name
PREDICTORS = ("euler", "analytic")  # of a SEDD
STEPWISE_GUIDED = ("args", "args_stochastic", "pargs", "pargs_g", "value_head")  # guided step by step by a reward
GUIDED = (*STEPWISE_GUIDED, "best_of_n", "top_k")  # guided by a reward
FILTERS = ("twisted_smc", "fk")  # by particles
EVERY_STRATEGY = (*STRATEGIES, *DECODERS, *PREDICTORS, *GUIDED, *FILTERS)
REMASK_SCHEDULES = ("cap", "rescale", "conf", "loop")  # of the probability of remasking of remdm
BEHIND_PROMPT = ("policy", "wino")  # strategies that distinguish the response from the prompt
COMMIT_ORDERS = ("random", "confidence")  # of the positions that a decoder with exact counts commits
P2_SCHEDULES = ("linear", "sine", "geometric", "log", "square", "root")  # of the share of committed positions of p2
P2_READS = ("shown", "drawn", "quality")  # which score p2 gives to a committed position
P2_SCORES = ("probability", "random")
PRISM_FORMS = ("count", "binomial")  # of the number of tokens that prism masks again
CORRECTED = ("margin", "uniform")  # how informed correctors choose positions
CONFIDENCES = ("model", "sampling")  # of which distribution a rule reads its confidences
POSITIONS = ("independent", "pair", "joint")  # how a guided decoder commits several positions of a step
QUALITY: tuple[str, ...] = ("p2", "prism")  # strategies that read the quality of committed tokens
QUALITY_SOURCES = ("seen", "leave_out", "head")  # of the quality of committed tokens (samplers/quality.py)
