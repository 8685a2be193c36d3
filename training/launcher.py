"""What torchrun and accelerate are told of a process that ends."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def tell_launcher(told: str) -> None:
    """Write the reason for which this process ends where the launcher looks for it: its report of a failed start, which is some
    40 lines long and stands below the process's own output, then ends with that sentence. Without a launcher nothing is done."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": told, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(file).write_text(json.dumps({"message": message}), encoding="utf-8")
