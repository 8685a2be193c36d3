"""Pairwise comparison: a local reward; an endpoint on this machine that fails, answers nonsense, prefers the first, or goes down."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from evaluation.chat import KEY, Chat, JudgeUnreachable, read_scores
from unmask.commands import evaluate as evaluate_command


@contextmanager
def service(answer):
    """A local endpoint. answer(body, number of the request) -> (status, reply), or the whole body of status 200."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            told = answer(body, len(seen))
            status, reply = (200, None) if isinstance(told, str) else told
            content = (
                json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
                if reply is not None
                else told.encode()
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shown(body):
    """The two answers that were shown."""
    text = body["messages"][1]["content"]
    return [text.split(f"[Answer {n}]\n")[1].split(f"\n[End of answer {n}]")[0] for n in (1, 2)]


def by_length(body, number):
    return 200, " ".join(str(min(10, max(1, len(answer)))) for answer in shown(body)) + "\nbecause"


@pytest.fixture
def files(tmp_path):
    """Red is longer, shorter, equal."""
    answers = {"red": ["aaaa", "a", "aa"], "blue": ["bb", "bbb", "bb"]}
    for name, results in answers.items():
        rows = [{"prompt": f"p{n}", "result": result} for n, result in enumerate(results)]
        (tmp_path / f"generation_{name}.json").write_text(json.dumps(rows))
    return tmp_path


def compare(files, *more):
    status = evaluate_command.main(["--task", "pairwise", "--red", str(files / "generation_red.json"), "--blue",
                                str(files / "generation_blue.json"), "--out", str(files / "out"), *more])  # fmt: skip
    return status, json.loads((files / "out" / "red_blue.json").read_text())


def counts(result):
    return tuple(result[key] for key in ("win", "tie", "lose", "unparsable"))


def test_a_local_reward_and_the_published_schema(files):
    (files / "generation_red.json").write_text(
        json.dumps([{"prompt": f"p{n}", "result": r} for n, r in enumerate(["x", "x y z", "x y"])])
    )
    (files / "generation_blue.json").write_text(
        json.dumps([{"prompt": f"p{n}", "result": r} for n, r in enumerate(["x y", "x", "y x"])])
    )
    status, result = compare(files, "--judge", "brevity")
    assert status == 0 and counts(result) == (1, 1, 1, 0)
    assert list(result) == ["run_name_red", "run_name_blue", "win", "tie", "lose", "unparsable", "evaluations"]
    assert set(result["evaluations"][0]) == {
        "blue",
        "prompt",
        "red_answer",
        "blue_answer",
        "red_score",
        "blue_score",
        "result",
    }


def test_an_endpoint_judges_both_orders_and_gets_the_key_from_the_environment(files, monkeypatch):
    monkeypatch.setenv(KEY, "s3cret")
    with service(by_length) as (url, seen):
        status, result = compare(files, "--endpoint", url, "--judge", "tiny")
    assert status == 0 and counts(result) == (1, 1, 1, 0) and len(result["evaluations"]) == 6
    assert [entry["blue"] for entry in result["evaluations"]] == [2, 1] * 3
    assert {(path, key) for path, key, _ in seen} == {("/v1/chat/completions", "Bearer s3cret")}
    assert seen[0][2]["model"] == "tiny" and seen[0][2]["temperature"] == 0
    assert shown(seen[0][2]) == ["aaaa", "bb"] and shown(seen[1][2]) == ["bb", "aaaa"]
    written = "".join(path.read_text() for path in (files / "out").iterdir())
    assert "s3cret" not in written


def test_a_judge_that_prefers_what_it_reads_first_decides_nothing(files):
    with service(lambda body, number: (200, "9 3")) as (url, _):
        assert counts(compare(files, "--endpoint", url, "--judge", "j")[1]) == (0, 3, 0, 0)


def test_what_cannot_be_read_is_counted_and_is_no_tie(files):
    """The published script scores it 0 to 0."""
    answer = lambda body, number: (200, "I cannot say.") if number == 1 else by_length(body, number)
    with service(answer) as (url, _):
        status, result = compare(files, "--endpoint", url, "--judge", "j")
    assert status == 0 and counts(result) == (0, 1, 1, 1)
    first = result["evaluations"][0]
    assert first["red_score"] is None and first["result"] == "I cannot say."


@pytest.mark.parametrize(("reply", "scores"), [
    ("7 8", (7, 8)), ("  7.5, 8\nwhy", (7.5, 8)), ("7/8", (7, 8)), ("Answer 1: 7, 8", None), ("", None), ("0 11", None), ("7", None),
    ("7 8 9", None), ("7 8\r\nwhy", (7, 8)), ("7 8\u2028why", None), ("7 8\x0b9", None),
])  # fmt: skip
def test_scores_are_the_whole_first_line(reply, scores):
    assert read_scores(reply) == scores


def test_a_local_judge_that_says_no_number_decides_nothing(files, monkeypatch):
    class Silent:
        def score_texts(self, prompts, texts, finished=None):
            return torch.full((len(texts),), torch.nan)

    monkeypatch.setattr("evaluation.pairwise.load_scorer", lambda name, device: Silent())
    status, result = compare(files, "--judge", "silent")
    assert status == 0 and counts(result) == (0, 0, 0, 3) and result["evaluations"][0]["red_score"] is None


@pytest.mark.parametrize("reply", ['{"error": "busy"}', '{"choices": []}', "null"])
def test_a_service_that_answers_without_a_completion_is_tried_again(reply):
    with service(lambda body, number: reply if number < 3 else (200, "5 6")) as (url, seen):
        assert Chat(url, "j", retries=3, wait=0.001).judge("p", "a", "b") == ("5 6", (5.0, 6.0))
        assert len(seen) == 3
    with service(lambda body, number: reply) as (url, _):  # noqa: SIM117
        with pytest.raises(JudgeUnreachable, match="in 2 attempts .status 200 without a completion"):
            Chat(url, "j", retries=1, wait=0.001).judge("p", "a", "b")


def test_faults_of_the_service_are_tried_again():
    with service(lambda body, number: (503, "") if number < 3 else (200, "5 6")) as (url, seen):
        assert Chat(url, "j", retries=3, wait=0.001).judge("p", "a", "b") == ("5 6", (5.0, 6.0))
        assert len(seen) == 3
    with service(lambda body, number: (400, "bad")) as (url, seen):
        with pytest.raises(JudgeUnreachable, match="does not take the request"):
            Chat(url, "j", wait=0.001).judge("p", "a", "b")
        assert len(seen) == 1
    with service(lambda body, number: (401, "")) as (url, seen), pytest.raises(JudgeUnreachable, match=f"set {KEY}"):
        Chat(url, "j", wait=0.001).judge("p", "a", "b")


def test_an_endpoint_that_goes_down_keeps_what_is_done_and_the_same_command_goes_on(files, capsys):
    with service(lambda body, number: by_length(body, number) if number <= 3 else (500, "")) as (url, _):
        status, result = compare(files, "--endpoint", url, "--judge", "j", "--retries", "0")
    assert status == 1 and len(result["evaluations"]) == 3
    told = capsys.readouterr().err
    assert (
        "did not answer in 1 attempts (status 500); 3 judgements are kept in" in told
        and "the same command goes on" in told
    )
    log = files / "out" / "red_blue.judgements.jsonl"
    log.write_text(log.read_text() + '{"row": 1, "bl')  # and was killed in the middle of a line
    with service(by_length) as (url, seen):
        status, result = compare(files, "--endpoint", url, "--judge", "j")
    assert status == 0 and counts(result) == (1, 1, 1, 0) and len(seen) == 3
    with (
        service(by_length) as (url, _),
        pytest.raises(ValueError, match="judgements of other answers or by another judge"),
    ):
        compare(files, "--endpoint", url, "--judge", "another")


def test_no_endpoint_at_all(files, capsys):
    assert compare(files, "--endpoint", "http://127.0.0.1:9/v1", "--judge", "j", "--retries", "0")[0] == 1
    assert "ConnectError" in capsys.readouterr().err


def test_answers_to_other_prompts_and_files_that_are_none_are_refused(files):
    (files / "generation_blue.json").write_text(json.dumps([{"prompt": "other", "result": "x"}]))
    with pytest.raises(ValueError, match="answer different prompts"):
        compare(files, "--judge", "brevity")
    (files / "generation_blue.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no answers; expected"):
        compare(files, "--judge", "brevity")
    with pytest.raises(ValueError, match="--task pairwize is unknown; use one of reward, pairwise"):
        evaluate_command.main(["--task", "pairwize"])


def test_a_password_in_the_url_of_a_judge_is_not_printed():
    assert str(JudgeUnreachable("http://me:pass@word@host:1/v1 refuses (ConnectError: http://a:b@c)")) == (
        "http://host:1/v1 refuses (ConnectError: http://c)"
    )
