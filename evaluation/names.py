"""Names and numbers that the help of commands lists. Imports nothing, so that `--help` is fast."""

SAMPLING_MODES = {  # how positions are chosen by a policy: published name -> ours
    "bernoulli-argmax": "bernoulli_argmax",
    "dpls": "plackett_luce",
    "threshold": "threshold",
    "fixed": "fixed",
}
# Published names of unmasking rules.
ALIASES = {"fastdllm": "threshold", "low_confidence": "top_prob", "margin": "confidence", "eb": "entropy_bound"}
ALL = ("gsm8k", "math", "humaneval", "mbpp")  # what `--datasets all` means
WORKED = ("gsm8k", "math")  # data sets with worked answers
NOISES = 64  # mask rates a row of `perplexity`, where none are given
