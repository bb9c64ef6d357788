"""One reply of a teacher: the request, its limits, its retries, and what may go wrong.

Ollama, llama.cpp, LM Studio, vLLM and mlx_lm.server all answer `POST {url}/chat/completions`.

    happens                          then
    nothing listens, name unknown    tried again a few times, then TeacherError
    HTTP 401, 403, 404               TeacherError at once: it would be the same for every prompt
    HTTP 408, 409, 429, 5xx          tried again, after `Retry-After` where the server says so
    slow, cut off, not JSON, empty   tried again, then the prompt counts as refused
    other HTTP errors (too long...)  the prompt counts as refused
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from mlx_companion.errors import ConfigError, MissingExtraError, TeacherError
from mlx_companion.runtime.config import nearest

_LOCAL = ("127.0.0.1", "localhost", "::1")
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_HOPELESS = (401, 403, 404)
_LONGEST_PAUSE = 60.0
_LARGEST_ANSWER = 16 << 20
_SHOWN = 200
# Settings that say how to ask, not what.
_NOT_IDENTITY = ("concurrency", "timeout", "retries", "backoff", "most_failures", "key_variable")


@dataclass(frozen=True)
class TeacherConfig:
    """A teacher and how it is asked.

    Args:
        model: its name at the server.
        url: of the server's OpenAI-compatible interface; the default is Ollama on this machine.
        system: a system message for prompts without one.
        temperature, top_p, max_tokens: how it writes.
        seed: for servers that sample repeatably; None not to send one.
        concurrency: requests under way at once.
        timeout: most seconds for one reply, from the first byte asked to the last one read.
        retries: how often a request is tried again.
        backoff: seconds before the first retry; each pause is twice the one before, up to a
            minute, and a random part of it is left out.
        most_failures: prompts in a row without a reply after which to give up.
        key_variable: name of the environment variable that holds an API key, if one is needed.

    Raises:
        ConfigError: a value out of range.
    """

    model: str = "llama3.2"
    url: str = "http://127.0.0.1:11434/v1"
    system: str | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = 0
    concurrency: int = 4
    timeout: float = 300.0
    retries: int = 4
    backoff: float = 1.0
    most_failures: int = 5
    key_variable: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))
        parts = urlsplit(self.url)
        self._check("url", parts.scheme in ("http", "https") and parts.hostname, "http://host/v1")
        self._check("model", self.model.strip(), "a name")
        self._check("temperature", 0 <= self.temperature <= 10, "0 to 10")
        self._check("top_p", 0 < self.top_p <= 1, "over 0, up to 1")
        for name in ("max_tokens", "concurrency", "most_failures"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        self._check("timeout", self.timeout > 0, "over 0")
        for name in ("retries", "backoff"):
            self._check(name, getattr(self, name) >= 0, "0 or more")

    @property
    def local(self) -> bool:
        """Whether the server is on this machine."""
        return urlsplit(self.url).hostname in _LOCAL

    def identity(self) -> dict[str, Any]:
        """What a reply depends on."""
        return {name: v for name, v in asdict(self).items() if name not in _NOT_IDENTITY}

    def _check(self, name: str, fits: Any, expected: str) -> None:
        if not fits:
            raise ConfigError(f"teacher.{name} is {getattr(self, name)!r}; expected {expected}")


@dataclass(frozen=True)
class TeacherReply:
    """A reply.

    Attributes:
        messages: what was asked.
        text: the reply, without white space around it.
        finish_reason: "stop", "length" (cut off), or what else the server says.
        model: which the server says wrote it.
    """

    messages: tuple[dict[str, str], ...]
    text: str
    finish_reason: str
    model: str

    @property
    def cut(self) -> bool:
        """Whether it was cut off at the most tokens allowed."""
        return self.finish_reason == "length"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "messages": list(self.messages),
            "reply": self.text,
            "finish_reason": self.finish_reason,
            "model": self.model,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TeacherReply:
        """From what `to_json` gave."""
        text = values["reply"]
        if not isinstance(text, str):
            raise TypeError(f"a reply is {type(text).__name__}")
        messages = tuple(values["messages"])
        return cls(messages, text, str(values["finish_reason"]), str(values["model"]))


class Refused(Exception):  # noqa: N818 - no error of the run: other prompts go on
    """This prompt got no reply, for a reason that need not hold for others."""


class _Again(Exception):  # noqa: N818 - caught here
    """Worth another try; `pause` is what the server asked for (seconds)."""

    def __init__(self, problem: str, pause: float | None = None, *, down: bool = False) -> None:
        super().__init__(problem)
        self.pause, self.down = pause, down


class TeacherClient:
    """A connection to the server; a context manager. `ask` may be called from many threads.

    Raises:
        MissingExtraError: httpx is not installed.
        ConfigError: the environment variable of the key is not set.
    """

    def __init__(self, config: TeacherConfig) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("httpx", "teacher") from error
        self.config, self._httpx = config, httpx
        self._client = httpx.Client(
            headers=self._headers(),
            timeout=httpx.Timeout(config.timeout, connect=min(10.0, config.timeout)),
            limits=httpx.Limits(max_connections=config.concurrency),
            # A proxy of the environment must not see what is meant for this machine.
            trust_env=not config.local,
        )
        self._random = random.Random(0)

    def __enter__(self) -> TeacherClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; nothing may be asked any more."""
        self._client.close()

    def check(self) -> None:
        """Look whether the server is there and knows the model; servers without a list pass.

        Raises:
            TeacherError: nothing listens there, it refuses, or the model is not among its own.
        """
        try:
            status, data, _ = self._send("GET", "models", None)
        except _Again as problem:
            if problem.down:
                raise self._unreachable(problem) from problem
            return
        if status in (401, 403):
            raise self._hopeless(status, data)
        try:
            names = [str(entry["id"]) for entry in json.loads(data)["data"]]
        except (ValueError, KeyError, TypeError):
            return
        wanted = self.config.model
        if names and wanted not in names and f"{wanted}:latest" not in names:
            raise TeacherError(
                f"the server at {self.config.url} has no model '{wanted}'{nearest(wanted, names)}"
                f"; with Ollama: ollama pull {wanted}"
            )

    def ask(self, messages: Sequence[dict[str, str]], over: threading.Event) -> TeacherReply:
        """The reply to a conversation.

        Args:
            messages: the turns.
            over: ends the pauses between retries.

        Raises:
            Refused: no reply to this prompt.
            TeacherError: none to any prompt.
        """
        for attempt in range(self.config.retries + 1):
            try:
                return self._ask_once(messages)
            except _Again as problem:
                last = problem
            if attempt < self.config.retries and over.wait(self._pause(attempt, last.pause)):
                break
        if last.down:
            raise self._unreachable(last)
        raise Refused(f"{last}, after {self.config.retries + 1} tries")

    def _ask_once(self, messages: Sequence[dict[str, str]]) -> TeacherReply:
        config = self.config
        body: dict[str, Any] = {
            "model": config.model,
            "messages": list(messages),
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
            "stream": False,
        }
        if config.seed is not None:
            body["seed"] = config.seed
        status, data, headers = self._send("POST", "chat/completions", body)
        if status == 200:
            return _reply(messages, data, config.model)
        if status in _HOPELESS:
            raise self._hopeless(status, data)
        if status in _AGAIN:
            told = f"the server says HTTP {status}: {_problem(data)}"
            raise _Again(told, _retry_after(headers.get("retry-after")))
        raise Refused(f"the server says HTTP {status}: {_problem(data)}")

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """(status, content, headers), all of it within the time limit."""
        end = time.monotonic() + self.config.timeout
        received = bytearray()
        try:
            url = f"{self.config.url}/{path}"
            # Escaped, because httpx cannot send half of a surrogate pair, and prompts may hold one.
            content = None if body is None else json.dumps(body).encode()
            with self._client.stream(method, url, content=content) as response:
                for part in response.iter_bytes():
                    received += part
                    if time.monotonic() > end:
                        raise _Again(f"no whole reply in {self.config.timeout:g} s")
                    if len(received) > _LARGEST_ANSWER:
                        raise _Again(f"an answer of over {_LARGEST_ANSWER >> 20} MB")
                return response.status_code, bytes(received), response.headers
        except self._httpx.ConnectError as error:
            raise _Again(str(error) or "refused", down=True) from error
        except self._httpx.ConnectTimeout as error:
            raise _Again("no connection", down=True) from error
        except self._httpx.TimeoutException as error:
            raise _Again(f"no reply in {self.config.timeout:g} s") from error
        except self._httpx.HTTPError as error:
            raise _Again(f"the connection broke ({error or type(error).__name__})") from error

    def _pause(self, attempt: int, asked: float | None) -> float:
        own = min(_LONGEST_PAUSE, self.config.backoff * 2**attempt)
        # Requests that failed together do not come back together.
        own *= 0.5 + 0.5 * self._random.random()
        return own if asked is None else min(_LONGEST_PAUSE, max(own, asked))

    def _headers(self) -> dict[str, str]:
        name = self.config.key_variable
        kind = {"Content-Type": "application/json"}
        if name is None:
            return kind
        key = os.environ.get(name)
        if not key:
            raise ConfigError(f"the environment variable {name} holds no key for the teacher")
        return kind | {"Authorization": f"Bearer {key}"}

    def _unreachable(self, problem: Exception) -> TeacherError:
        return TeacherError(
            f"no server answers at {self.config.url} ({problem}); start it (ollama serve), or give "
            "another address with teacher.url"
        )

    def _hopeless(self, status: int, data: bytes) -> TeacherError:
        what = {401: "it wants a key: set teacher.key_variable", 403: "it refuses this key"}.get(
            status,
            f"check teacher.url, which mostly ends with /v1, and the model's name "
            f"'{self.config.model}' (with Ollama: ollama pull {self.config.model})",
        )
        return TeacherError(
            f"the server at {self.config.url} says HTTP {status} ({_problem(data)}); {what}"
        )


def _reply(messages: Sequence[dict[str, str]], data: bytes, model: str) -> TeacherReply:
    try:
        answer = json.loads(data)
        choice = answer["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise _Again(f"the answer is no completion: {_shown(data)}") from error
    if not isinstance(text, str) or not text.strip():
        raise _Again("the reply is empty")
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    reason = str(choice.get("finish_reason") or "stop")
    return TeacherReply(tuple(messages), text.strip(), reason, str(answer.get("model") or model))


def _problem(data: bytes) -> str:
    """What a server says is wrong."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:_SHOWN]
    except (ValueError, KeyError, TypeError, RecursionError):
        return _shown(data)


def _shown(data: bytes) -> str:
    text = data[:_SHOWN].decode("utf-8", "replace").strip()
    return repr(text) if text else "nothing"


def _retry_after(value: str | None) -> float | None:
    """Seconds; the form with a date is left to the growing pauses."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None
