"""Train a quality head: which committed tokens of a frozen masked-diffusion model are right.

    python -m unmask train-quality experiment=sudoku6_quality
    python -m unmask train-quality dlm=stories data=stories quality.share=1
    torchrun --nproc-per-node 2 -m unmask train-quality dlm=chain data=chain
    python -m unmask train-quality resume=output/2026.01.31/120000

The command writes a run directory (training/run.py). `sampler.quality.source=head sampler.quality.path=RUN` loads its
subdirectory RUN/quality. RUN/reliability.png shows the calibration on held-out data. RUN/calibration.json has its figures, beside
those of the model's own outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_quality", list(arguments))
