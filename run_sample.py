"""Sample text or puzzles: `python -m unmask sample` under its published name.

python run_sample.py --strategy direct --batch_size 1 --steps 16
"""

from __future__ import annotations

from training.interrupt import end_in_one_line

if __name__ == "__main__":
    end_in_one_line()  # before the imports below

import sys

from unmask.__main__ import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
