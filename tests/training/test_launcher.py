"""What torchrun prints of a process that refused something: its sentence, at the end of the report."""

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from training.usage import exit_on_bad_input


def test_the_report_of_the_launcher_names_the_reason(tmp_path, monkeypatch, capsys):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    with pytest.raises(SystemExit, match="2"), exit_on_bad_input():
        raise ValueError("training.batch_size=3 is not divisible by the 2 processes; choose a multiple of 2")
    told = capsys.readouterr().err.strip()
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    report = ChildFailedError("run_train_policy.py", {0: failure}).format_msg().strip().splitlines()
    assert told.startswith("error: training.batch_size=3") and told in report[-2]


def test_without_a_launcher_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit), exit_on_bad_input():
        raise ValueError("no")
    assert not list(tmp_path.iterdir())
