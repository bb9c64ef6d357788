"""The file of replies: appended to, sound after a kill at any byte, for one process at a time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from patience import LONG, until
from small_disk import mounted_disk

from mlx_companion.errors import DataError, DiskFullError, TeacherError
from mlx_companion.training.teacher_api import TeacherConfig, ask_teacher
from mlx_companion.training.teacher_replies import ReplyFile, reply_key
from mlx_companion.training.teacher_stub import teacher_stub

pytest.importorskip("httpx", reason="extra `teacher`")

QUESTIONS = [f"Question {number}?" for number in range(30)]


def config(url: str, **options: Any) -> TeacherConfig:
    return TeacherConfig(
        **{"model": "stub", "url": url, "backoff": 0.01, "timeout": LONG, **options}
    )


def answer(messages: list[dict[str, str]], _: int) -> str:
    return f"Answer to {messages[-1]['content']} é"


def texts(path: Path) -> list[str]:
    return [json.loads(line)["reply"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replies.jsonl"


def test_a_second_run_asks_for_nothing(path: Path) -> None:
    with teacher_stub(answer) as stub:
        first = ask_teacher(QUESTIONS, config(stub.url), path)
        before = path.read_bytes()
        second = ask_teacher(QUESTIONS, config(stub.url), path)
        assert second.replies == first.replies
        assert (second.asked, len(stub.requests)) == (0, 30)
        assert path.read_bytes() == before


def test_other_prompts_and_settings_are_asked_for(path: Path) -> None:
    with teacher_stub(answer, models=["stub", "other"]) as stub:
        ask_teacher(QUESTIONS[:2], config(stub.url), path)
        for changed in ({"temperature": 0.1}, {"system": "s"}, {"seed": 1}, {"model": "other"}):
            assert ask_teacher(QUESTIONS[:2], config(stub.url, **changed), path).asked == 2
        assert ask_teacher(QUESTIONS[:3], config(stub.url), path).asked == 1
        # How it is asked does not matter.
        patient = config(stub.url, timeout=50, concurrency=1, retries=0, backoff=2)
        assert ask_teacher(QUESTIONS[:3], patient, path).asked == 0


def test_keys_depend_on_every_turn() -> None:
    one = [{"role": "user", "content": "a"}]
    keys = {
        reply_key(one, TeacherConfig()),
        reply_key([*one, {"role": "user", "content": "a"}], TeacherConfig()),
        reply_key([{"role": "system", "content": "a"}], TeacherConfig()),
        reply_key(one, TeacherConfig(max_tokens=5)),
    }
    assert len(keys) == 4


def test_a_file_cut_at_any_byte_loses_at_most_the_last_reply(path: Path) -> None:
    with teacher_stub(answer) as stub:
        ask_teacher(QUESTIONS[:3], config(stub.url, concurrency=1), path)
        whole = path.read_bytes()
        ends = [at for at in range(len(whole)) if whole[at : at + 1] == b"\n"]
        for cut in range(ends[1] + 1, len(whole), 7):
            path.write_bytes(whole[:cut])
            with ReplyFile(path) as file:
                assert len(file.replies) == 2
            assert path.read_bytes() == whole[: ends[1] + 1]
        path.write_bytes(whole[:-4])
        assert ask_teacher(QUESTIONS[:3], config(stub.url), path).asked == 1
    assert path.read_bytes() == whole


def test_a_damaged_line_is_asked_again(path: Path) -> None:
    with teacher_stub(answer) as stub:
        ask_teacher(QUESTIONS[:3], config(stub.url, concurrency=1), path)
        lines = path.read_bytes().splitlines(keepends=True)
        for damage in (
            b"\xff\xfe\n",
            b'{"key": 3}\n',
            b"null\n",
            b"\n",
            b'{"key": "a", "reply": 1}\n',
        ):
            path.write_bytes(lines[0] + damage + b"\n" + lines[2])
            found = ask_teacher(QUESTIONS[:3], config(stub.url), path)
            assert found.asked == 1
            assert found.replies[1] is not None


def test_another_kind_of_file_is_not_appended_to(path: Path) -> None:
    path.write_text("my notes\nof today\n")
    with teacher_stub(answer) as stub, pytest.raises(DataError, match="no file of a teacher"):
        ask_teacher(["a"], config(stub.url), path)
    assert path.read_text() == "my notes\nof today\n"


def test_two_processes_do_not_share_a_file(path: Path) -> None:
    with ReplyFile(path), pytest.raises(TeacherError, match="another process"):
        ReplyFile(path).__enter__()
    with ReplyFile(path):
        pass


CHILD = """
import sys
from mlx_companion.training.teacher_api import TeacherConfig, ask_teacher
config = TeacherConfig(model="stub", url=sys.argv[1], concurrency=3)
ask_teacher([f"Question {n}?" for n in range(30)], config, sys.argv[2])
"""


def test_a_killed_run_asks_only_for_what_is_missing(path: Path) -> None:
    killed = threading.Event()

    def held(messages: list[dict[str, str]], number: int) -> str:
        # The child cannot come to its end before it is killed.
        if number >= 15:
            killed.wait()
        return answer(messages, number)

    with teacher_stub(held) as stub:
        child = subprocess.Popen([sys.executable, "-c", CHILD, stub.url, str(path)])
        # Each of its three threads waits by then, and no request is on its way.
        until(lambda: len(stub.requests) == 18 and path.read_bytes().count(b"\n") >= 8)
        child.send_signal(signal.SIGKILL)
        child.wait()
        kept = len(texts(path))
        assert 8 <= kept <= 15
        killed.set()
        before = len(stub.requests)
        found = ask_teacher(QUESTIONS, config(stub.url), path)
        assert len(stub.requests) - before == found.asked == 30 - kept
    assert sorted(texts(path)) == sorted(f"Answer to {question} é" for question in QUESTIONS)


def test_a_full_disk_keeps_whole_replies(tmp_path: Path) -> None:
    long = "word " * 4000
    with (
        mounted_disk(tmp_path / "disk", "100k") as disk,
        teacher_stub(lambda *_: long) as stub,
    ):
        path = disk / "replies.jsonl"
        with pytest.raises(DiskFullError, match="no space left"):
            ask_teacher(QUESTIONS, config(stub.url, concurrency=1), path)
        kept = texts(path)
        assert 0 < len(kept) < 30
        assert set(kept) == {long.strip()}
