"""A judge behind an OpenAI-compatible endpoint: scores two answers to a prompt from 1 to 10.

The key comes from the environment (OPENAI_API_KEY; a local service may need none). A request that fails (no connection,
429, a server error) is repeated after 1, 2, 4, ... seconds.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

import httpx

KEY = "OPENAI_API_KEY"
INSTRUCTION = (
    "You compare two answers to the same prompt: how helpful, correct and well written they are. The first line of your reply "
    "holds nothing but two numbers from 1 to 10 with a space between them, the score of answer 1 and that of answer 2. Explain "
    "the scores in the lines below. The order of the answers must not matter."
)
SCORES = re.compile(r"\s*(\d+(?:\.\d+)?)[\s,/]+(\d+(?:\.\d+)?)\s*")


class JudgeUnreachable(Exception):
    """The endpoint does not answer; finished judgements are kept. The message contains no password of a URL."""

    def __init__(self, message: str):
        super().__init__(re.sub(r"(://)[^/\s]*@", r"\1", message))


@dataclass
class Judgement:
    """One pair in one order. blue: place of blue's answer, 1 or 2; reply: its text; scores: None if the reply has
    none."""

    row: int
    blue: int
    red_score: float | None
    blue_score: float | None
    reply: str


def read_scores(reply: str) -> tuple[float, float] | None:
    """Return the two numbers of the first line, each from 1 to 10; None for any other reply."""
    found = SCORES.fullmatch(reply.strip().partition("\n")[0])  # splitlines would also end a line at U+2028
    pair = (float(found[1]), float(found[2])) if found else None
    return pair if pair is not None and all(1 <= score <= 10 for score in pair) else None


@dataclass
class Chat:
    """A connection. endpoint: URL up to and including /v1; model: its name there; retries: of a request; wait: seconds
    before the first retry.
    """

    endpoint: str
    model: str
    temperature: float = 0.0
    retries: int = 5
    wait: float = 1.0

    def judge(self, prompt: str, first: str, second: str) -> tuple[str, tuple[float, float] | None]:
        """Return the reply, and its scores of the first and the second answer. Raises JudgeUnreachable."""
        request = (
            f"[Prompt]\n{prompt}\n\n[Answer 1]\n{first}\n[End of answer 1]\n\n[Answer 2]\n{second}\n[End of answer 2]"
        )
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": request}]
        body = {"model": self.model, "messages": messages, "temperature": self.temperature, "max_tokens": 2048}
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url, failure = f"{self.endpoint.rstrip('/')}/chat/completions", ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                answer = httpx.post(url, json=body, headers=headers, timeout=120)
            except httpx.TransportError as error:
                failure = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code == 200:
                try:
                    reply = answer.json()["choices"][0]["message"]["content"] or ""
                except (ValueError, KeyError, IndexError, TypeError):
                    failure = f"status 200 without a completion: {answer.text[:200]}"
                    continue
                return reply, read_scores(reply)
            failure = f"status {answer.status_code}"
            if answer.status_code in (401, 403):
                raise JudgeUnreachable(f"{url} refuses ({failure}); set {KEY}")
            if answer.status_code < 500 and answer.status_code not in (408, 429):
                raise JudgeUnreachable(f"{url} does not take the request ({failure}: {answer.text[:200]})")
        raise JudgeUnreachable(f"{url} did not answer in {self.retries + 1} attempts ({failure})")
