"""No setting ends in a traceback: wrong values for every key of every configuration, the same ones at every run."""

import signal

import pytest

from benchmarks.fuzz_settings import fuzz


@pytest.mark.skipif(
    not hasattr(signal, "SIGALRM"), reason="a draw that hangs is stopped by SIGALRM, which this system lacks"
)
def test_300_wrong_settings_are_refused_in_one_sentence_or_run():
    found = fuzz(300, seed=0, seconds=60)
    assert found.draws == 300 and found.refused > 200
    assert not found.tracebacks and not found.not_finite and not found.slow
