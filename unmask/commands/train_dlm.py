"""Pre-train or fine-tune a masked-diffusion model, or adapt a causal model to one.

    python -m unmask train-dlm experiment=stories
    python -m unmask train-dlm experiment=adapt_smollm2
    torchrun --nproc-per-node 8 -m unmask train-dlm experiment=radd_owt model.dtype=bfloat16
    python -m unmask train-dlm resume=output/2026.01.31/120000

The command writes a run directory (training/run.py). load_model and `unmask sample --model` load its subdirectory RUN/model.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_dlm", list(arguments))
