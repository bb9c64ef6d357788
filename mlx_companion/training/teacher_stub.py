"""A stand-in for a teacher's server, for smoke runs and tests: no model, and faults on demand.

    with teacher_stub(lambda messages, number: "Aye.") as stub:
        ask_teacher(["Why?"], TeacherConfig(model="stub", url=stub.url), "replies.jsonl")
    stub.requests[0]["messages"]

It answers on this machine only, at a port of the system's choice.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class StubAnswer:
    """An answer as it goes over the wire.

    Args:
        body: of the response.
        status: HTTP's.
        headers: more of them.
        delay: seconds before it.
        between: seconds between its bytes; 0 sends all at once.
        missing: bytes that are promised and never sent.
    """

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    between: float = 0.0
    missing: int = 0


Answer = Callable[[list[dict[str, str]], int], "str | StubAnswer"]


@dataclass
class TeacherStub:
    """A running stand-in.

    Attributes:
        url: for `TeacherConfig`.
        requests: bodies of the requests for replies, in the order in which they came.
        paths: of all requests.
        keys: the Authorization header of each of them, if any.
        most_at_once: requests under way at the same time, at most.
    """

    url: str
    answer: Answer
    models: tuple[str, ...]
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any]) -> StubAnswer:
        """The answer to a request for a reply."""
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            answer = self.answer(body["messages"], number)
            if isinstance(answer, str):
                return StubAnswer(completion(answer, body["model"]))
            time.sleep(answer.delay)
            return answer
        finally:
            with self.lock:
                self.under_way -= 1


def completion(text: str, model: str = "stub", finish_reason: str = "stop") -> bytes:
    """The body of a good answer."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
    }
    return json.dumps({"object": "chat.completion", "model": model, "choices": [choice]}).encode()


@contextlib.contextmanager
def teacher_stub(answer: Answer, models: Sequence[str] = ("stub",)) -> Iterator[TeacherStub]:
    """Run a stand-in while the block runs.

    Args:
        answer: from (messages, number of the request) to a text or an answer; called by threads.
        models: names that the server lists.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    # Threads that still send a slow answer must not hold up the end.
    server.block_on_close = False
    stub = TeacherStub(f"http://127.0.0.1:{server.server_port}/v1", answer, tuple(models))
    server.stub = stub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        stub = self._noted()
        listed = [{"id": name, "object": "model"} for name in stub.models]
        self._send(StubAnswer(json.dumps({"object": "list", "data": listed}).encode()))

    def do_POST(self) -> None:
        stub = self._noted()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(stub.reply(body))

    def _noted(self) -> TeacherStub:
        stub: TeacherStub = self.server.stub  # type: ignore[attr-defined]
        stub.paths.append(self.path)
        stub.keys.append(self.headers.get("Authorization"))
        return stub

    def _send(self, answer: StubAnswer) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) + answer.missing))
            self.end_headers()
            step = 1 if answer.between else max(1, len(answer.body))
            for at in range(0, len(answer.body), step):
                self.wfile.write(answer.body[at : at + step])
                time.sleep(answer.between)
            self.close_connection = bool(answer.missing)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
