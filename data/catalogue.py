"""Names of the question data sets and their hub ids. Imports nothing, so that `--help` can list them."""

HUB = {
    "gsm8k": ("openai/gsm8k", "main", ("question", "answer")),
    "math": ("ankner/math-500", None, ("problem", "solution")),
    "humaneval": ("openai/openai_humaneval", None, ("prompt", "test", "entry_point")),
    "mbpp": ("google-research-datasets/mbpp", "full", ("text", "code", "test_list", "test_setup_code")),
    "kodcode": ("KodCode/KodCode-Light-RL-10K", None, ("question", "test", "test_info")),
}
GYM = ("countdown", "gsm_symbolic", "sudoku")
DATASETS = (*HUB, "chain", *GYM, "rg:NAME")
