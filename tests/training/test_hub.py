"""Names that are no ids of the hub, and a hub out of reach: one sentence, and no waiting for each file."""

import socket
from pathlib import Path

import pytest

import training.hub
from data.rows import text_tokenizer
from data.settings import TextSettings
from data.text import load_texts
from rewards.models import load_reward
from training.hub import prepare, stay_offline_where_unreachable
from unmask.commands import evaluate as evaluate_command


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            lambda: load_texts("storys", "train"),
            "the data set 'storys' is no directory and no hub id; did you mean stories?",
        ),
        (lambda: load_texts("./missing", "train"), "the data set './missing' .* a hub id is OWNER/NAME"),
        (lambda: load_texts("/nowhere/x", "train"), "the data set '/nowhere/x' is no directory"),
        (lambda: load_reward("-1e308"), "the reward '-1e308' is no directory and no hub id"),
        (lambda: load_reward("é\n"), "is no directory and no hub id"),
        (lambda: load_reward("vadr"), r"the reward 'vadr' .* did you mean vader\?"),
        (lambda: load_reward("reward_storie"), r"did you mean example/reward_stories\?"),
    ],
)
def test_a_name_that_is_no_id_never_goes_to_the_hub(read, message, monkeypatch):
    monkeypatch.setattr(training.hub, "stay_offline_where_unreachable", lambda: pytest.fail("the hub is asked"))
    with pytest.raises(ValueError, match=message):
        read()


def test_a_file_of_another_kind_is_no_hub_id(tmp_path):
    (tmp_path / "data.csv").write_text("text\na\n")
    with pytest.raises(
        ValueError, match=r"data.csv' is a file of no known kind; give a .txt, .jsonl or .jsonl.gz file"
    ):
        load_texts(str(tmp_path / "data.csv"), "train")


def test_a_hub_out_of_reach_is_asked_once(monkeypatch):
    asked = []

    def unreachable(address, timeout):
        asked.append((address, timeout))
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(training.hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(training.hub.constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(training.hub, "getproxies", dict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(socket, "create_connection", unreachable)
    stay_offline_where_unreachable.cache_clear()
    for name in ("owner/a", "owner/b", "owner/a"):
        prepare(name, "data set")
        with pytest.raises(ValueError, match="cannot be reached"):
            load_texts(name, "train")
    assert asked == [(("hub.invalid", 443), training.hub.SECONDS)] and training.hub.constants.HF_HUB_OFFLINE


def test_an_evaluation_names_a_data_set_that_cannot_be_read_once(tmp_path, capsys):
    words = [
        "--strategy",
        "threshold",
        "--settings",
        "0.5,0.9",
        "--seeds",
        "1,2,3",
        "--model",
        "example/chain",
        "--length",
        "24",
    ]
    assert (
        evaluate_command.main(
            [*words, "--datasets", "gsm8k", "--data_dir", str(tmp_path), "--out", str(tmp_path / "out")]
        )
        == 1
    )
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("gsm8k: ") and not (tmp_path / "out").exists()


def test_a_shipped_folder_may_have_a_second_name():
    assert training.hub.ALIASES["example/stories_policy"] == "example/014609"
    for alias, folder in training.hub.ALIASES.items():
        path = training.hub.shipped(folder)
        assert training.hub.shipped(alias) == training.hub.shipped(alias + "/") == path and Path(path).is_dir()
        assert not (training.hub.ROOT / alias).exists()


def test_shipped_files_are_read_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(text_tokenizer(TextSettings())) == len(text_tokenizer(TextSettings(tokenizer="example/stories"))) > 256
    assert len(load_texts("data/stories/valid.jsonl.gz", "valid")) == len(load_texts("stories", "valid"))
    for own in ("data/mine.jsonl", "data/stories/mine.jsonl", "data"):
        assert training.hub.shipped(own) == own
