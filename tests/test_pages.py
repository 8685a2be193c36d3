"""The Python of the documentation runs as it is written, and prints what the page says that it prints."""

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask.commands import sample as sample_command

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
PRINTED = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)


def blocks(page: str) -> list[str]:
    """The Python blocks of a page; indented ones are excerpts of a longer example."""
    return [block for block in BLOCK.findall((ROOT / page).read_text()) if not block.startswith(" ")]


def run(source: str, folder: Path, monkeypatch) -> dict:
    """The names of a file after it has run, from a directory outside of the repository."""
    monkeypatch.chdir(folder)
    file = folder / "mine.py"
    file.write_text(source)
    return runpy.run_path(str(file))


def in_order(expected: list[str], printed: list[str]) -> bool:
    lines = iter(printed)
    return all(line in lines for line in expected)


@pytest.mark.parametrize(("page", "marked"), [("README.md", 1), ("docs/python.md", 18)])
def test_a_page_prints_what_it_says(page, marked, tmp_path, monkeypatch, capsys):
    source = "\n".join(block for block in blocks(page) if 'device="cuda"' not in block)
    expected = PRINTED.findall(source)
    assert len(expected) >= marked
    names = run(source, tmp_path, monkeypatch)
    printed = capsys.readouterr().out.splitlines()
    assert in_order(expected, printed), (expected, printed)
    assert names["out"].texts[0].startswith("Once upon a time")
    for replay in re.findall(r"save_replay\(\"(.*?)\"\)", source):
        assert "<html" in (tmp_path / replay).read_text()


SHOWN = re.compile(r"```bash\npython run_sample\.py ([^\n]*)\n```\n\n```\n(.*?)\n```", re.DOTALL)


@pytest.mark.parametrize("number", range(3))
def test_the_first_commands_of_the_readme_print_what_it_shows(number, capsys):
    found = SHOWN.findall((ROOT / "README.md").read_text())
    assert len(found) == 3
    command, shown = found[number]
    sample_command.main([*shlex.split(command), "--no-eval", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"--- sample 0 ---\n{shown}\n"), printed


def test_the_readme_is_short_and_defines_its_placeholders():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "RUN" not in re.findall(r"\b[A-Z]{3,}\b", text) or "`RUN` stands for" in text


@pytest.mark.parametrize("page", ["docs/sampling.md", "docs/smc.md"])
def test_the_block_of_a_method_runs(page, tmp_path, monkeypatch):
    (source,) = blocks(page)
    names = run(source, tmp_path, monkeypatch)
    samples = names["samples"] if page == "docs/sampling.md" else names["found"].samples
    assert (samples.unmasked_at >= 0).all() and len(samples.tokens) == (4 if page == "docs/sampling.md" else 32)


def test_the_page_on_policies_saves_loads_and_decodes(tmp_path, monkeypatch):
    names = run("\n".join(blocks("docs/policies.md")), tmp_path, monkeypatch)
    assert (tmp_path / "my_policy/config.json").is_file()
    for name, tensor in names["policy"].state_dict().items():
        assert torch.equal(tensor, names["same"].state_dict()[name]), name
    assert (names["out"].tokens != names["model"].mask_id).all()
    assert (names["samples"].tokens != names["model"].mask_id).all() and len(names["samples"].tokens) == 4


METHODS = sorted(page.stem for page in (ROOT / "docs/methods").glob("*.md"))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_a_formula_a_source_a_command_and_figures(method):
    text = (ROOT / f"docs/methods/{method}.md").read_text()
    assert "```bash" in text and re.search(r"^\*\*Command|^```bash", text, re.MULTILINE), "command"
    assert re.search(r"\[\d{4}\.\d{5}\]|github.com|TRL|OnTrack|top_k", text), "source"
    assert re.search(r"\*\*Figures|!\[|Results on|results/", text), "figure"
    assert re.search(r"[Ww]hat differs|Differences", text), "differences"


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Cell by cell in one namespace, as a kernel does, from a directory outside of the repository."""
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    printed = capsys.readouterr().out
    assert "Once upon a time, there was a little girl named Emma" in printed and "Once upon a time there was" in printed
    assert "<html" in (tmp_path / "stories.html").read_text()
    assert (tmp_path / "quickstart.png").read_bytes()[:4] == b"\x89PNG"
    losses = [line["loss"] for line in names["policy"].metrics if "loss" in line]
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
    learned, rule = names["curves"]["policy"], names["curves"]["threshold"]
    assert learned[0] < learned[1] < learned[2] and learned[2][1] > rule[1][1]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]
)
def test_links_lead_to_headings(page):
    for file, anchor in re.findall(r"\]\(([^)\s:]*?)#([^)\s]+)\)", (ROOT / page).read_text()):
        target = (ROOT / page).parent / file if file else ROOT / page
        assert anchor in anchors(target), f"{page}: {file}#{anchor}"


TERMS = """canvas|masked position, open position|prompt, response|unmask, commit|remask, revise|unmasking rule|selected positions
token sampler|decoder|decoding step|block|trajectory|hidden states, logits|distribution, probability, density|log-normalizer|logit bias
network evaluation, nfe|equivalent evaluations|budget|judge|verifier|policy|action, action distribution|rollout|reward|reward model
ground truth|process, rank|run directory|checkpoint|particle|target|potential|log z|proposal|twist|effective sample size, ess"""


def test_the_glossary_explains_every_term_and_links_to_its_page():
    entries = re.findall(
        r"^\*\*(.+?)\.\*\* (.+?)(?:\n\n|\Z)", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE | re.DOTALL
    )
    explained = {term.lower(): text for term, text in entries}
    assert len(explained) == len(entries) and set(re.split(r"[|\n]", TERMS)) <= set(explained)
    assert all("](" in text for text in explained.values())


@pytest.fixture(scope="module")
def files() -> list[str]:
    """The files of docs/adding.md, each complete and short."""
    found = blocks("docs/adding.md")
    assert len(found) == 6
    assert all(sum(bool(line.strip()) for line in block.splitlines()) < 15 for block in found)
    return found


def test_a_rule_of_a_user(files, tmp_path, monkeypatch):
    (steps,) = run(files[0], tmp_path, monkeypatch)["out"].unmasked_at.tolist()
    opened = [step for step in steps if step >= 0]
    assert len(opened) > 10 and opened == sorted(opened, reverse=True) and set(opened) == {0, 1, 2, 3}


def test_a_decoder_on_canvases_of_a_user(files, tmp_path, monkeypatch):
    names = run(files[1], tmp_path, monkeypatch)
    assert names["samples"].evaluations.tolist() == [16] * 4
    assert (names["samples"].tokens != names["model"].mask_id).all()


def test_a_reward_of_a_user(files, tmp_path, monkeypatch):
    names = run(files[2], tmp_path, monkeypatch)
    reward = names["palindrome"]
    assert reward(["abba", "ab", ""]) == [1.0, 0.0, 0.0]
    worst = unmask.sample(
        names["model"],
        "The dog",
        strategy="best_of_n",
        reward=lambda texts: [-x for x in reward(texts)],
        **names["best"],
    )
    assert reward(names["out"].responses) > reward(worst.responses)


def test_a_decoder_of_a_user(files, tmp_path, monkeypatch):
    (steps,) = run(files[3], tmp_path, monkeypatch)["out"].unmasked_at.tolist()
    opened = [step for step in steps if step >= 0]
    assert all(opened.count(step) == 2 for step in range(len(opened) // 2))


def test_a_backbone_of_a_user(files, tmp_path, monkeypatch):
    tokens = run(files[4], tmp_path, monkeypatch)["out"].tokens
    assert tokens.shape == (100, 12)
    for token, probability in enumerate((0.7, 0.2, 0.1)):
        error = (probability * (1 - probability) / tokens.numel()) ** 0.5
        assert abs(float((tokens == token).double().mean()) - probability) < 4.5 * error


def test_a_task_of_a_user(files, tmp_path, monkeypatch):
    names = run(files[5], tmp_path, monkeypatch)
    assert [names["Sums"]().check("2 A +3 B ?", answer) for answer in ("A 5 = 5", "5 = 4", "")] == [True, False, False]
    (row,) = names["found"].rows
    assert row["dataset"] == "Sums" and row["samples"] == 3 and 0 <= row["accuracy_mean"] <= 1
    assert (tmp_path / "sums").is_dir()
