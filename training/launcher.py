"""Report the reason of a process's end to torchrun and accelerate."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def tell_launcher(message: str) -> None:
    """Write the reason of this process's end to the file that the launcher reads.

    The launcher's report of a failed start, some 40 lines below the process's own output, then ends with that sentence.
    Does nothing without a launcher.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        entry = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(file).write_text(json.dumps({"message": entry}), encoding="utf-8")
