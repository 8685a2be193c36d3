"""Text from models, prompts and files as a terminal may show it."""

from __future__ import annotations

import re

# C0 but newline and tab, DEL, C1 (ESC [ and its kin move the cursor, change titles, write to the clipboard), and the marks that
# reverse the direction of what stands beside them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with control characters written out, such as \\x1b: a terminal shows them and does not obey them."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
