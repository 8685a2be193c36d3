"""Files are whole or not there, whoever is killed or whatever the disk refuses; one process at a time in a run directory."""

import json
import os
import resource
import signal
import socket
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.files import (
    Unwritable,
    check_cache,
    check_place,
    is_stream,
    make_directory,
    replacing,
    replacing_directory,
    sweep,
    whole_lines,
    write_text,
)
from training.lock import Lock
from training.terminal import printable

WRITERS = {
    "text": lambda part: part.write_text("new" * 10_000),
    "torch": lambda part: torch.save({"new": torch.zeros(10_000)}, part),
    "safetensors": lambda part: save_file({"new": torch.zeros(10_000)}, part),
}


def in_a_child(work) -> int:
    """The wait status of a process that does `work`."""
    if (child := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_kill_in_the_middle_of_a_write_leaves_the_file_that_was_there(writer, tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def killed():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills whoever writes more than so many bytes
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with replacing(target) as part:
            WRITERS[writer](part)

    assert os.WTERMSIG(in_a_child(killed)) == signal.SIGXFSZ
    assert target.read_text() == "old" and (tmp_path / "file.part").exists()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_refuses_is_one_sentence_and_nothing_is_left(writer, tmp_path):
    target, told = tmp_path / "file", tmp_path / "told"

    def refused():
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (5000, 5000)
        )  # writing more raises EFBIG here, as Python ignores the signal
        try:
            with replacing(target) as part:
                WRITERS[writer](part)
        except Unwritable as error:
            told.write_text(str(error))
            os._exit(0)

    assert in_a_child(refused) == 0
    assert told.read_text().startswith(f"{target} cannot be written (") and "free some space" in told.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["told"]


def test_a_pipe_is_written_to_and_no_file_takes_its_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "words")
    assert os.read(reader, 100) == b"words" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)
    assert is_stream(Path("/dev/null")) and is_stream(Path("/dev/stdout")) and not is_stream(tmp_path / "new")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_device_is_one_sentence():
    with pytest.raises(Unwritable, match="/dev/full cannot be written"):
        write_text("/dev/full", "words")


def test_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing_directory(tmp_path / "model") as part:
            save_file({"w": torch.zeros(1)}, part / "model.safetensors")  # 0600, by the library
        with replacing(tmp_path / "one.safetensors") as part:
            save_file({"w": torch.zeros(1)}, part)
    finally:
        os.umask(before)
    for name in ("model/model.safetensors", "one.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_a_directory_is_replaced_file_by_file_and_keeps_the_others(tmp_path):
    for text in ("one", "two"):
        with replacing_directory(tmp_path / "model") as part:
            (part / "config.json").write_text(text)
            (part / "deep").mkdir()
            (part / "deep" / "file").write_text(text)
        (tmp_path / "model" / "other").touch()
    assert (tmp_path / "model" / "config.json").read_text() == (tmp_path / "model/deep/file").read_text() == "two"
    assert (tmp_path / "model" / "other").exists() and [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(KeyError), replacing_directory(tmp_path / "model") as part:
        (part / "config.json").write_text("three")
        raise KeyError
    assert (tmp_path / "model" / "config.json").read_text() == "two" and len(list(tmp_path.iterdir())) == 1


def test_half_a_line_is_cut_off(tmp_path):
    file = tmp_path / "lines.jsonl"
    assert whole_lines(file) == []
    file.write_text('{"a": 1}\n{"a": "x\u2028y"}\n{"a": 3')
    assert whole_lines(file) == ['{"a": 1}', '{"a": "x\u2028y"}']
    assert file.read_text().endswith('y"}\n')


def test_places_that_cannot_be_are_refused_before_work(tmp_path):
    (tmp_path / "file").touch()
    for place, reason in (("file", "is a file"), ("file/deep", "is a file"), ("x" * 300, "name")):
        with pytest.raises(ValueError, match=f"run_dir=.*{reason}.*give another"):
            check_place(tmp_path / place, f"run_dir={place}")
    with pytest.raises(ValueError, match="run_dir=/proc/x"):
        make_directory("/proc/x", "run_dir=/proc/x")
    with pytest.raises(ValueError, match="run_dir=/proc/x cannot be made"):
        check_place("/proc/x", "run_dir=/proc/x")  # whose permissions say that it can
    check_place(tmp_path / "new" / "deeper", "run_dir=new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_cache_need_not_be_written_to_where_it_is(tmp_path):
    with pytest.raises(ValueError, match="data.cache_dir=/proc/x cannot be made"):
        check_cache("/proc/x", "data.cache_dir=/proc/x")
    check_cache("/proc", "data.cache_dir=/proc")
    check_cache(None, "data.cache_dir=null")


def test_a_second_process_is_refused_and_a_dead_one_is_followed(tmp_path):
    mine = Lock(tmp_path)

    def second():
        try:
            Lock(tmp_path)
        except ValueError as error:
            (tmp_path / "told").write_text(str(error))
            os._exit(3)

    assert os.WEXITSTATUS(in_a_child(second)) == 3
    assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in (tmp_path / "told").read_text()
    mine.release()
    assert not (tmp_path / "lock").exists()

    def dies():
        Lock(tmp_path)
        os.kill(os.getpid(), signal.SIGKILL)

    in_a_child(dies)
    assert (tmp_path / "lock").exists()
    Lock(tmp_path).release()
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "process": 7}))
    with pytest.raises(ValueError, match="process 7 on the host elsewhere.*delete .*/lock"):
        Lock(tmp_path)


def test_control_sequences_are_shown_and_not_obeyed():
    assert printable("a\x1b[2Jb\x9b1mc\x1b]0;title\x07 d\r\u202ee") == r"a\x1b[2Jb\x9b1mc\x1b]0;title\x07 d\r\u202ee"
    assert printable("line\n\ttab é 漢 שלום 😀") == "line\n\ttab é 漢 שלום 😀"


def test_text_files_keep_their_newlines(tmp_path):
    write_text(tmp_path / "file", "a\r\nb\n")
    assert (tmp_path / "file").read_bytes() == b"a\r\nb\n"
