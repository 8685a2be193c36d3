"""Learn where to unmask: `python -m unmask train-policy` under its published name.

torchrun --nproc-per-node 1 run_train_policy.py training.accum=1 training.batch_size=8 sampler.steps=16
"""

from __future__ import annotations

from training.interrupt import end_in_one_line

if __name__ == "__main__":
    end_in_one_line()  # before the imports below

import sys

from unmask.__main__ import main

if __name__ == "__main__":
    main(["train-policy", *sys.argv[1:]])
