"""Asking a teacher, against a stand-in server: what goes over the wire, and everything that fails.

Every fault is a real one on a real socket.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import LONG, not_hanging, until

from mlx_companion.errors import ConfigError, GenerationError, Stopped, TeacherError
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.training.teacher_api import TeacherConfig, TeacherReplies, ask_teacher
from mlx_companion.training.teacher_replies import ReplyFile
from mlx_companion.training.teacher_stub import (
    Answer,
    StubAnswer,
    TeacherStub,
    completion,
    teacher_stub,
)

pytest.importorskip("httpx", reason="extra `teacher`")

QUESTIONS = [f"What is {number} plus one?" for number in range(12)]


def quick(url: str, **options: Any) -> TeacherConfig:
    return TeacherConfig(
        **{"model": "stub", "url": url, "backoff": 0.01, "timeout": LONG, **options}
    )


def echo(messages: list[dict[str, str]], _: int) -> str:
    return f"You asked: {messages[-1]['content']}"


def asked(
    answer: Answer, path: Path, prompts: list[Any] | None = None, **options: Any
) -> tuple[TeacherReplies, TeacherStub]:
    with teacher_stub(answer) as stub:
        wanted = QUESTIONS[:1] if prompts is None else prompts
        return ask_teacher(wanted, quick(stub.url, **options), path), stub


def failing(times: int, fault: StubAnswer, then: str = "fine") -> Answer:
    """The first so many requests fail."""
    return lambda _, number: fault if number < times else then


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replies.jsonl"


def test_replies_come_in_the_order_of_the_prompts(path: Path) -> None:
    def answer(messages: list[dict[str, str]], number: int) -> StubAnswer:
        # The first ones asked are the last ones answered.
        return StubAnswer(completion(echo(messages, number)), delay=0.05 if number < 4 else 0)

    found, _ = asked(answer, path, QUESTIONS)
    assert [reply and reply.text for reply in found.replies] == [
        f"You asked: {question}" for question in QUESTIONS
    ]
    assert found.asked == len(QUESTIONS)
    assert not found.failed
    sample = found.samples()[3]
    assert [(turn.role, turn.content) for turn in sample.messages] == [
        ("user", QUESTIONS[3]),
        ("assistant", f"You asked: {QUESTIONS[3]}"),
    ]


def test_the_request_is_what_the_interface_asks_for(path: Path) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}]  # fmt: skip
    _, stub = asked(echo, path, [chat], system="Be brief.", temperature=0.2, top_p=0.9, seed=5,
                    max_tokens=77)  # fmt: skip
    assert stub.paths == ["/v1/models", "/v1/chat/completions"]
    assert stub.requests == [
        {
            "model": "stub",
            "messages": [{"role": "system", "content": "Be brief."}, *chat],
            "temperature": 0.2,
            "top_p": 0.9,
            "max_tokens": 77,
            "stream": False,
            "seed": 5,
        }
    ]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_requests_are_under_way_and_no_more(path: Path, concurrency: int) -> None:
    def answer(messages: list[dict[str, str]], number: int) -> StubAnswer:
        return StubAnswer(completion("fine"), delay=0.05)

    _, stub = asked(answer, path, QUESTIONS, concurrency=concurrency)
    assert stub.most_at_once == concurrency


def test_equal_prompts_are_asked_once(path: Path) -> None:
    found, stub = asked(echo, path, ["same", "other", "same"])
    assert len(stub.requests) == 2
    assert [reply and reply.text for reply in found.replies] == [
        "You asked: same",
        "You asked: other",
        "You asked: same",
    ]


@pytest.mark.parametrize(
    "fault",
    [
        StubAnswer(b'{"error": {"message": "slow down"}}', 429, {"Retry-After": "0.02"}),
        StubAnswer(b'{"error": "busy"}', 429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        StubAnswer(b"Internal Server Error", 500),
        StubAnswer(b"", 503),
        StubAnswer(b"<html>proxy</html>"),
        StubAnswer(b'{"choices": []}'),
        StubAnswer(b'{"choices": [{"message": {"content": null}}]}'),
        StubAnswer(b"[" * 100_000),
        StubAnswer(bytes(range(256))),
        StubAnswer(completion("cut")[:-20]),
        StubAnswer(completion("cut"), missing=10),
        StubAnswer(completion("   ")),
        StubAnswer(b""),
    ],
    ids=["429", "429-date", "500", "503", "html", "no-choice", "null", "deep", "binary",
         "half-json", "broken-off", "blank", "nothing"],
)  # fmt: skip
def test_what_may_pass_is_tried_again(path: Path, fault: StubAnswer) -> None:
    found, stub = asked(failing(2, fault), path)
    assert [reply and reply.text for reply in found.replies] == ["fine"]
    assert len(stub.requests) == 3


def test_a_pause_that_the_server_asks_for_is_kept(path: Path) -> None:
    start = time.monotonic()
    asked(failing(1, StubAnswer(b"", 429, {"Retry-After": "0.4"})), path)
    assert time.monotonic() - start > 0.4


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (404, b'{"error": {"message": "model \'stub\' not found"}}', "ollama pull stub"),
        (401, b"", "set teacher.key_variable"),
        (403, b'{"error": "not for you"}', "not for you"),
    ],
)
def test_what_is_wrong_for_all_prompts_ends_the_work(
    path: Path, status: int, body: bytes, sentence: str
) -> None:
    with pytest.raises(TeacherError, match=f"HTTP {status}.*{sentence}"):
        asked(lambda *_: StubAnswer(body, status), path, QUESTIONS, concurrency=1)


def test_a_prompt_that_is_refused_is_told_and_the_others_go_on(path: Path) -> None:
    def answer(messages: list[dict[str, str]], number: int) -> str | StubAnswer:
        if "3" in messages[-1]["content"]:
            return StubAnswer(b'{"error": {"message": "too long"}}', 400)
        return "fine"

    found, stub = asked(answer, path, QUESTIONS)
    assert [number for number, _ in found.failed] == [3]
    assert "HTTP 400: too long" in found.failed[0][1]
    assert found.replies[3] is None
    assert len(found.samples()) == len(QUESTIONS) - 1
    assert len(stub.requests) == len(QUESTIONS)


def test_an_empty_reply_is_no_reply(path: Path) -> None:
    found, stub = asked(lambda *_: "\n", path, retries=2)
    assert found.failed == [(0, "the reply is empty, after 3 tries")]
    assert len(stub.requests) == 3
    assert path.read_text() == ""


def test_a_server_that_keeps_failing_ends_the_work(path: Path) -> None:
    fails = lambda _, number: "fine" if number < 2 else StubAnswer(b"", 500)  # noqa: E731
    with pytest.raises(TeacherError, match=r"3 prompts in a row.*HTTP 500"):
        asked(fails, path, QUESTIONS, retries=0, most_failures=3, concurrency=1)
    assert len(path.read_text().splitlines()) == 2


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_nothing_listens(path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(TeacherError, match=f"no server answers at {url}.*ollama serve"):
        ask_teacher(["a"], quick(url), path)


def test_a_server_that_dies_on_the_way_is_told(path: Path) -> None:
    with teacher_stub(echo) as stub:
        url = stub.url
        ask_teacher(QUESTIONS[:2], quick(url), path)
    with pytest.raises(TeacherError, match="no server answers"):
        ask_teacher(QUESTIONS, quick(url, retries=1), path)
    # Nothing is asked where everything is known.
    found = ask_teacher(QUESTIONS[:2], quick(url), path)
    assert found.asked == 0
    assert found.replies[1] is not None


def test_an_unknown_model_is_told_with_those_that_are_there(path: Path) -> None:
    with (
        teacher_stub(echo, models=["llama3.1:8b", "qwen2.5:3b"]) as stub,
        pytest.raises(TeacherError, match=r"no model 'llama3:8b'; did you mean 'llama3.1:8b'"),
    ):
        ask_teacher(["a"], quick(stub.url, model="llama3:8b"), path)
    assert stub.requests == []


def test_a_name_without_its_tag_is_known(path: Path) -> None:
    with teacher_stub(echo, models=["llama3.2:latest"]) as stub:
        found = ask_teacher(["a"], quick(stub.url, model="llama3.2"), path)
    assert found.asked == 1


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """What a silent server waits for: the end of the test."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "trickling"])
def test_a_slow_reply_is_given_up(path: Path, silent: bool, over: threading.Event) -> None:
    def answer(*_: Any) -> StubAnswer:
        if silent:
            over.wait()
        return StubAnswer(completion("drop by drop " * 1000), between=0.05)

    found, _ = asked(answer, path, timeout=0.3, retries=1)
    assert "no" in found.failed[0][1]
    assert "in 0.3 s, after 2 tries" in found.failed[0][1]


def test_a_flood_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_companion.training.teacher_client._LARGEST_ANSWER", 1000)
    found, _ = asked(lambda *_: "much " * 1000, path, retries=0)
    assert "an answer of over" in found.failed[0][1]


def test_a_stop_does_not_wait_for_a_slow_server(path: Path, over: threading.Event) -> None:
    stop = StopSwitch()

    def answer(messages: list[dict[str, str]], number: int) -> str | StubAnswer:
        if number == 2:
            until(lambda: len(path.read_text().splitlines()) == 2)
            stop.request("enough")
        if number >= 2:
            over.wait()
        return "fine"

    with teacher_stub(answer) as stub, not_hanging(LONG / 2), pytest.raises(Stopped):
        ask_teacher(QUESTIONS, quick(stub.url, concurrency=2), path, stop=stop)
    assert len(path.read_text().splitlines()) == 2


def test_progress_counts_what_is_known(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with teacher_stub(echo) as stub:
        ask_teacher(QUESTIONS[:5], quick(stub.url), path)
        ask_teacher(
            QUESTIONS,
            quick(stub.url),
            path,
            on_reply=lambda known, total: seen.append((known, total)),
        )
    assert seen == [(known, 12) for known in range(6, 13)]


def test_cut_replies_train_nobody(path: Path) -> None:
    found, _ = asked(
        lambda *_: StubAnswer(completion("and then", finish_reason="length")), path, ["a"]
    )
    assert found.samples() == []
    assert len(found.samples(whole=False)) == 1


def test_odd_letters_survive(path: Path) -> None:
    found, _ = asked(lambda *_: "né 你好 \U0001f600 \0 end", path)
    assert found.replies[0] is not None
    assert found.replies[0].text == "né 你好 \U0001f600  end"


def test_half_a_surrogate_pair_is_asked_about_like_any_text(path: Path) -> None:
    found, stub = asked(echo, path, ["ünï \ud800"])
    assert stub.requests[0]["messages"][0]["content"] == "ünï \ud800"
    assert found.asked == 1
    with ReplyFile(path) as file:
        assert [reply.text for reply in file.replies.values()] == ["You asked: ünï ?"]


def test_a_key_is_read_from_the_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="TEACHER_KEY_OF_TEST holds no key"):
        asked(echo, path, key_variable="TEACHER_KEY_OF_TEST")
    monkeypatch.setenv("TEACHER_KEY_OF_TEST", "open sesame")
    with teacher_stub(echo) as stub:
        ask_teacher(["a"], quick(stub.url, key_variable="TEACHER_KEY_OF_TEST"), path)
    assert stub.keys == ["Bearer open sesame"] * 2
    assert "sesame" not in path.read_text()


def test_a_proxy_of_the_environment_is_not_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found, _ = asked(echo, path)
    assert found.asked == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "localhost:11434"}, "teacher.url is"),
        ({"url": "ftp://a/v1"}, "teacher.url is"),
        ({"model": " "}, "teacher.model is"),
        ({"temperature": -1}, "teacher.temperature is -1"),
        ({"top_p": 0}, "teacher.top_p is 0"),
        ({"concurrency": 0}, "teacher.concurrency is 0"),
        ({"timeout": 0}, "teacher.timeout is 0"),
        ({"retries": -1}, "teacher.retries is -1"),
    ],
)
def test_bad_settings(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        TeacherConfig(**options)


def test_bad_prompts(path: Path) -> None:
    config = quick(f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(GenerationError, match="empty"):
        ask_teacher([" "], config, path)
    with pytest.raises(ConfigError, match="not tokens"):
        ask_teacher([[1, 2]], config, path)
    assert ask_teacher([], config, path).replies == []


def test_the_default_is_this_machine() -> None:
    assert TeacherConfig().local
    assert not TeacherConfig(url="https://example.org/v1").local
    assert json.dumps(TeacherConfig().identity())
    assert os.environ.get("TEACHER_KEY_OF_TEST") is None
