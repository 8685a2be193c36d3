"""The frontier against brute force, files that read back, and a replay page that no token can break out of."""

import csv
import io
import json
import random
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

import evaluation.report
from evaluation.replay import replay_html
from evaluation.report import pareto_frontier, plot_pareto, plot_tpf, print_table, style, write_csv, write_json

RECORDS = [
    {"name": name, "x": cost, "y": quality, "lo": quality - 0.05, "hi": quality + 0.05}
    for name, cost, quality in (("policy", 4, 0.5), ("policy", 16, 0.8), ("policy", 32, 0.7), ("random", 64, 0.6))
]


@pytest.mark.parametrize("higher", [True, False])
def test_frontier_equals_brute_force(higher):
    draw = random.Random(0)
    for _ in range(50):
        points = [(draw.randrange(8), draw.randrange(8)) for _ in range(12)]
        sign = 1 if higher else -1
        undominated = {
            (cost, quality)
            for cost, quality in points
            if not any(c <= cost and sign * q >= sign * quality and (c, q) != (cost, quality) for c, q in points)
        }
        assert pareto_frontier(points, higher) == sorted(undominated)


def test_the_frontier_of_speeds_is_that_of_their_negatives():
    points = [(1, 5), (2, 4), (3, 4), (4, 2), (2, 1)]
    assert pareto_frontier(points, faster_is_right=True) == [(4, 2), (3, 4), (1, 5)]
    expected = [(-cost, quality) for cost, quality in pareto_frontier([(-x, y) for x, y in points])]
    assert pareto_frontier(points, faster_is_right=True) == expected


def test_points_without_a_speed_are_not_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluation.report, "plot_pareto", lambda records, *_, **__: drawn.append(list(records)))
    plot_tpf([{"x": None, "y": 1, "name": "a"}], tmp_path / "a.png", "right")
    plot_tpf([{"x": None, "y": 1, "name": "a"}, {"x": 2, "y": 1, "name": "b"}], tmp_path / "a.png", "right")
    assert drawn == [[{"x": 2, "y": 1, "name": "b"}]]


def test_plot_is_a_png(tmp_path):
    plot_pareto(RECORDS, tmp_path / "plot.png", "boards solved", title="Sudoku")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no records"):
        plot_pareto([], tmp_path / "plot.png", "quality")


def test_table_and_files_read_back(tmp_path):
    records = [{"name": 'ä, "b"', "nfe": 4}, {"name": "c", "gen_ppl": float("nan")}]
    write_csv(records, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"name": 'ä, "b"', "nfe": "4", "gen_ppl": ""},
            {"name": "c", "nfe": "", "gen_ppl": "nan"},
        ]
    write_json({"rows": records}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["rows"][1] == {"name": "c", "gen_ppl": None}
    page = io.StringIO()
    print_table(records, "[bold]Title", Console(file=page, width=80))
    assert "gen_ppl" in page.getvalue() and "[bold]Title" in page.getvalue()


@dataclass
class Written:
    tokens: torch.Tensor
    prompt: torch.Tensor
    positions: torch.Tensor
    unmasked_at: torch.Tensor
    history: torch.Tensor | None = None


class Page(HTMLParser):
    """The tags of a page, its title and the content of its data element."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.inside, self.texts = [], [], None, {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]
        self.inside = dict(attributes).get("id", tag)

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, text):
        self.texts[self.inside] = self.texts.get(self.inside, "") + text


def written(rows: int = 2, length: int = 9) -> Written:
    prompt = torch.zeros(rows, length, dtype=torch.bool)
    prompt[:, 0] = True
    steps = torch.arange(length).expand(rows, length).masked_fill(prompt, -1)
    positions = torch.full((rows,), length)
    return Written(torch.arange(length).expand(rows, length) % 4, prompt, positions, steps)


def test_replay_holds_every_token_and_no_token_escapes():
    words = ["</script><script>alert(1)</script>", "<!--", " a & b", '"\\\n']
    page = replay_html({"</h1><b>": written(), "plain": written()}, words.__getitem__, title="<i>'t\" & </title>")
    parsed, plain = Page(page), Page(replay_html({"plain": written()}, str))
    assert parsed.tags == plain.tags and not parsed.addresses
    assert parsed.texts["title"] == "<i>'t\" & </title>"
    content = json.loads(parsed.texts["data"])
    assert [group["name"] for group in content["groups"]] == ["</h1><b>", "plain"]
    row = content["groups"][0]["rows"][1]
    assert [content["texts"][token] for token in row["tokens"]] == [words[position % 4] for position in range(9)]
    assert row["at"] == [-1, 1, 2, 3, 4, 5, 6, 7, 8]
    assert "http" not in page


def test_revised_tokens_are_in_the_page_with_the_steps_at_which_they_were_there():
    samples = written()
    samples.history = torch.tensor([[1, 2, 7, 0, 1], [0, 5, 3, 2, 4], [1, 2, 3, 1, 2]])
    content = json.loads(Page(replay_html({"a": samples}, str)).texts["data"])
    rows = content["groups"][0]["rows"]
    named = [[[place, content["texts"][token], *steps] for place, token, *steps in row["past"]] for row in rows]
    assert named == [[[5, "3", 2, 4]], [[2, "7", 0, 1], [2, "3", 1, 2]]]
    assert json.loads(Page(replay_html({"a": written()}, str)).texts["data"])["groups"][0]["rows"][0]["past"] == []


def test_a_shorter_canvas_ends_where_it_ends():
    samples = written()
    samples.positions = torch.tensor([9, 5])
    rows = json.loads(Page(replay_html({"a": samples}, str)).texts["data"])["groups"][0]["rows"]
    assert [len(row["tokens"]) for row in rows] == [len(row["at"]) for row in rows] == [9, 5]


def test_replay_never_decodes_what_was_never_written():
    samples = written()
    samples.tokens = samples.tokens.clone().masked_fill_(torch.arange(9) > 6, 99)  # 99: a mask id past the vocabulary
    samples.unmasked_at[:, 7:] = -1
    content = json.loads(Page(replay_html({"a": samples}, ["a", "b", "c", "d"].__getitem__)).texts["data"])
    row = content["groups"][0]["rows"][0]
    assert row["tokens"] == [0, 1, 2, 3, 0, 1, 2, None, None]


@pytest.mark.parametrize(("columns", "box"), [(3, (1, 3)), (3, None), (None, None)])
def test_replay_of_a_board_draws_its_boxes(columns, box):
    content = json.loads(Page(replay_html({"a": written()}, str, grid_columns=columns, box=box)).texts["data"])
    assert (content["columns"], content["box"]) == (columns, list(box) if box else None)


def test_replay_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="9 positions, which 4 columns"):
        replay_html({"a": written()}, str, grid_columns=4)
    with pytest.raises(ValueError, match="at least one"):
        replay_html({}, str)


def test_no_two_of_many_methods_look_alike():
    looks = [style(place) for place in range(64)]
    assert len({(colour, marker) for colour, marker, _ in looks}) == 64
    assert len({colour for colour, _, _ in looks[:8]}) == len({marker for _, marker, _ in looks[:8]}) == 8
    assert {line for _, _, line in looks[:8]} == {"-"} and looks[8][2] != "-"


def test_text_that_a_spreadsheet_would_compute_is_quoted_and_numbers_stay_numbers(tmp_path):
    texts = ['=HYPERLINK("http://x")', "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-0.5", "+1e-3", "plain", "a=b"]
    write_csv([{"text": text, "=name": -1.5} for text in texts], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["text", "'=name"] and {row[1] for row in rows} == {"-1.5"}
    assert [row[0] for row in rows] == [*("'" + text for text in texts[:6]), *texts[6:]]


def test_replay_marks_cells_that_differ_from_the_solution():
    samples = written(rows=1)
    solutions = samples.tokens.clone()
    solutions[0, 5] = 3 - solutions[0, 5]
    solutions[0, 6] = 77  # a token that no sample has
    content = json.loads(Page(replay_html({"a": samples}, str, solutions=solutions)).texts["data"])
    tokens, right = content["groups"][0]["rows"][0]["tokens"], content["solutions"][0]
    assert [position for position in range(9) if tokens[position] != right[position]] == [5, 6]
    with pytest.raises(ValueError, match="one solution for each sample"):
        replay_html({"a": samples}, str, solutions=solutions[:, :5])
