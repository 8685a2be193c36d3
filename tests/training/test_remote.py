"""Runs at a URL: copied after each save, gone on with, checkpoints never half there; and resume checkpoints that are none."""

import shutil

import fsspec
import pytest
import torch

from tests.training.test_run import TINY, check_equal, flat, record, train, weights
from training.remote import LATEST, SLOTS, Remote

MORE = [override for override in TINY if "n_iters" not in override]


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty bucket; local copies of runs are made under tmp_path."""
    monkeypatch.chdir(tmp_path)
    yield "memory://bucket/runs/one"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    return train(*TINY, f"run_dir={tmp_path_factory.mktemp('whole')}")


def names(url):
    files, root = fsspec.url_to_fs(url)
    return {path.removeprefix(f"{root}/") for path in files.find(root)}


def test_a_run_at_a_url_is_what_the_local_one_is(bucket, whole):
    local = train(*TINY, f"run_dir={bucket}")
    assert local.parts[0] == "output"
    check_equal(local, whole)
    theirs = {path for path in names(bucket) if not path.startswith("checkpoints-meta/")}
    ours = {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()}
    assert theirs == {path for path in ours if not path.startswith("checkpoints-meta/")}
    remote = Remote(bucket)
    assert remote.read("metrics.jsonl") == (local / "metrics.jsonl").read_bytes()
    assert remote.checkpoint() == (local / "checkpoints-meta" / "checkpoint.pth").read_bytes()
    assert remote.read("model/model.safetensors") == (local / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("resume", ["resume=URL", "resume=auto run_dir=URL"])
def test_a_run_at_a_url_goes_on_where_it_was(resume, bucket, whole, tmp_path):
    first = train(*MORE, "training.n_iters=3", f"run_dir={bucket}")
    shutil.rmtree(first)  # another machine
    second = train(*resume.replace("URL", bucket).split(), "training.n_iters=6")
    check_equal(second, whole, but={(3, "valid_loss")})
    assert names(bucket) >= {"checkpoints/checkpoint_3.pth", "checkpoints/checkpoint_6.pth", "model/model.safetensors"}
    assert Remote(bucket).read("metrics.jsonl").count(b'"step": 3,') >= 1  # the history came along


def test_auto_begins_where_there_is_no_run(bucket, whole):
    local = train(*TINY, "resume=auto", f"run_dir={bucket}")
    check_equal(local, whole)
    assert Remote(bucket).holds(".hydra/config.yaml")
    with pytest.raises(ValueError, match="resume=auto looks for a run in run_dir; give run_dir=DIRECTORY too"):
        train(*TINY, "resume=auto")


def test_a_copy_that_is_cut_off_leaves_the_checkpoint_before_it(bucket, monkeypatch, whole):
    """The second checkpoint goes up half, and the machine is gone before the pointer is written."""
    put, put_up = Remote._send, []

    def dying(remote, file, name):
        if name in SLOTS:
            put_up.append(name)
            if len(put_up) == 2:
                remote.files.pipe_file(f"{remote.root}/{name}", file.read_bytes()[:100])
                raise KeyboardInterrupt
        return put(remote, file, name)

    monkeypatch.setattr(Remote, "_send", dying)
    with pytest.raises(KeyboardInterrupt):
        train(*TINY, f"run_dir={bucket}")
    monkeypatch.undo()
    assert put_up == list(SLOTS) and Remote(bucket).read(LATEST).decode() == SLOTS[0]
    state = torch.load(fsspec.open(f"{bucket}/{SLOTS[0]}").open(), weights_only=True)
    assert state["step"] == 2
    check_equal(train(f"resume={bucket}"), whole)


def test_a_storage_out_of_reach_is_tried_again_and_told_at_the_end(bucket, monkeypatch):
    pipe, refused = Remote._send, []

    def refusing(remote, file, name):
        if file.name == "checkpoint_3.pth" and len(refused) < 1:
            refused.append(name)
            raise ConnectionError("the line is down")
        return pipe(remote, file, name)

    monkeypatch.setattr(Remote, "_send", refusing)
    local = train(*TINY, f"run_dir={bucket}")
    assert (
        "tried again at the next save: memory://bucket/runs/one cannot be reached (the line is down)"
        in (local / "logs" / "run.log").read_text()
    )
    assert "checkpoints/checkpoint_3.pth" in names(bucket)
    assert (
        torch.load(fsspec.open(f"{bucket}/{Remote(bucket).read(LATEST).decode()}").open(), weights_only=True)["step"]
        == 6
    )


def test_what_is_refused_of_a_url(bucket, monkeypatch):
    train(*MORE, "training.n_iters=1", "optim.warmup=0", f"run_dir={bucket}")
    with pytest.raises(ValueError, match=f"run_dir={bucket} holds a run; resume={bucket} goes on with it"):
        train(*TINY, f"run_dir={bucket}")
    with pytest.raises(ValueError, match=f"resume={bucket}x is not a run directory"):
        train(f"resume={bucket}x")
    with pytest.raises(ValueError, match="a URL of a run must hold no user or password; set them in the environment"):
        train(*TINY, "run_dir=ftp://me:secret@host/runs")
    with pytest.raises(ValueError, match=r"sss://bucket/run is no URL that fsspec opens \(Protocol not known: sss\)"):
        train(*TINY, "run_dir=sss://bucket/run")

    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("training.remote.fsspec.url_to_fs", missing)
    with pytest.raises(
        ValueError, match=r"a package that is not installed \(Install s3fs .*run pip install -e '.\[s3\]'"
    ):
        train(*TINY, "run_dir=s3://bucket/run")


# ------------------------------------------------------------------------------------------ checkpoints that are none


def test_resume_checkpoints_that_are_none_are_refused(whole, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(whole, broken)
    file = broken / "checkpoints-meta" / "checkpoint.pth"
    good = file.read_bytes()
    kept = weights(whole)
    for content, message in (
        (good[: len(good) // 2], "checkpoint.pth cannot be read .* it is damaged or no checkpoint"),
        (b"", "checkpoint.pth cannot be read"),
        (
            torch.zeros(3),
            "holds Tensor, expected 'model', 'optimizer', 'ema' and 'step': it is no checkpoint of this script",
        ),
        ({"weights": torch.zeros(3)}, r"holds \['weights'\], expected 'model'"),
        (
            {name: value for name, value in kept.items() if name != "checksum"} | {"run": "another"},
            "is a checkpoint of another run than .*config.yaml describes; put back the run's own",
        ),
        ([1, 2], "holds list, expected 'model'"),
    ):
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        with pytest.raises(ValueError, match=message):
            train(f"resume={broken}", "training.n_iters=8")
    shutil.copy(broken / "checkpoints" / "checkpoint_3.pth", file)  # as the message says
    check_equal(train(f"resume={broken}"), whole)


def test_a_checkpoint_of_another_run_is_refused(whole, tmp_path):
    other = train(*(o for o in TINY if "lr" not in o), "optim.lr=0.03", f"run_dir={tmp_path / 'other'}")
    shutil.copy(whole / "checkpoints-meta" / "checkpoint.pth", other / "checkpoints-meta" / "checkpoint.pth")
    with pytest.raises(ValueError, match="is a checkpoint of another run"):
        train(f"resume={other}", "training.n_iters=7")
    assert flat(weights(other)).keys() == flat(weights(whole)).keys() and record(other) != record(whole)
