"""A stored configuration is data: it reaches no environment, no other file, no storage, and names no place to write."""

import os
import time

import pytest

from training.stored import configuration, description, parsed_json, parsed_yaml, read_json_object


def stored(text: str, **rest):
    return configuration(text.encode(), "RUN/.hydra/config.yaml", **rest)


def test_references_to_own_keys_are_resolved_and_nothing_else(monkeypatch):
    monkeypatch.setenv("SECRET", "s3cr3t")
    found = stored(
        "dlm: {path: stories}\ninit: '${oc.select:dlm.path,null}'\nother: '${oc.select:no.such,7}'\nn: 3\nstage: a\n"
        "published: {a: {lr: 1e-3}}\noptim: {lr: '${published.${stage}.lr}'}\ntext: 'x ${n} y'\n"
    )
    assert found.init == "stories" and found.other == 7 and found.optim.lr == 1e-3 and found.text == "x 3 y"


@pytest.mark.parametrize(
    "value",
    ["${oc.env:SECRET}", "a ${oc.env:SECRET}", "${${x}:SECRET}", "${oc.decode:'${oc.env:SECRET}'}", "${oc.create:{a:1}}",
     "${now:%Y}", "${hydra:runtime.cwd}", "${missing}", "${a", "$${x}", "${group}", "${v}", "s3://bucket/x", "http://host/x"],
)  # fmt: skip
def test_what_asks_for_something_outside_is_refused_by_its_key(value, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cr3t")
    text = f"x: oc.env\nd: '$'\ngroup: {{a: 1}}\nv: {value!r}\n"
    if value == "$${x}":
        text = "x: '{oc.env:SECRET}'\nd: '$'\nv: '${d}${x}'\n"
    with pytest.raises(ValueError, match=r"config.yaml sets v=") as error:
        stored(text)
    assert "s3cr3t" not in str(error.value)
    assert stored(text, ignored=["v"]).v is None


def test_in_a_description_what_asks_for_something_outside_is_text(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "s3cr3t")
    for before in ("", "\\", "\\\\", "a \\", "$"):
        (tmp_path / "config.yaml").write_text(f"dlm: {{path: '{before}${{oc.env:SECRET}}'}}\nseed: 3\nn: '${{seed}}'\n")
        found = description(tmp_path / "config.yaml")
        assert found.dlm.path == before + "${oc.env:SECRET}" and found.n == 3


def test_places_and_storages_come_from_the_command():
    found = stored(
        "run_dir: 'http://h/${oc.env:SECRET}'\nresume: x\nwandb: {mode: online, entity: them, name: '${oc.env:HOME}'}\n"
        "data: {cache_dir: /etc, train: stories}\n"
    )
    assert (
        found.run_dir is found.resume is found.wandb is found.data.cache_dir is None and found.data.train == "stories"
    )


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases": BOMB, "deep": "[" * 5000, "depth": "a: " + "[" * 60 + "]" * 60, "tags": "a: !!python/object/apply:os.system [ls]",
    "list": "[1, 2]", "words": "hello", "keys": "{1: 2}", "empty": "", "bytes": "\x00", "large": "a: " + "x" * 2_000_000,
    "references": "a: {x: '${a}'}", "doubling": "a0: '" + "x" * 1000 + "'\n" + "".join(f"a{n + 1}: '${{a{n}}}${{a{n}}}'\n" for n in range(40)),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configurations_end_in_one_sentence_at_once(case):
    started = time.process_time()
    with pytest.raises(ValueError, match=r"RUN/.hydra/config.yaml") as error:
        stored(HOSTILE[case])
    assert time.process_time() - started < 5 and len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_hostile_json_is_refused_by_its_file(tmp_path):
    for name, content in {"deep": b"[" * 100_000, "cut": b'{"a": 1', "bytes": b"\xff\xfe", "list": b"[]"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}"):
            read_json_object(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no file"):
        read_json_object(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="huge has 1,099,511,627,776 bytes"):
        read_json_object(tmp_path / "huge")
    assert parsed_json(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}
    assert parsed_yaml(b"a: 1e-3", "x") == {"a": 1e-3}
