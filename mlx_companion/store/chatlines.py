"""Plain chat lines, as other programs write them, turned into interactions.

Why: a person's earlier conversations are the best training data there is. Two forms are read::

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "response": "...", "system": "...", "feedback": "up"}

`completion` may stand for `response`; `feedback` is "up", "down" or {"edit": "better reply"} and
belongs to the last reply; other keys are ignored. Each reply becomes one interaction whose id is
the hash of the conversation up to it: the same conversation again, or grown longer, adds only
what is new. `meta.follows` names the interaction before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_companion.errors import DataError
from mlx_companion.store.values import (
    canonical_time,
    check_prompt,
    check_text,
    dump_json,
    now,
    sha256_text,
)

SOURCE = "import"
_ROLES = ("system", "user", "assistant")

Planned = tuple[str, dict[str, Any]]


def read_chat(item: Mapping[str, Any]) -> list[Planned]:
    """The rows of one plain line, as (kind, values) in the order of writing.

    Raises:
        DataError: it is no chat, or a field is empty or wrong; names the field.
    """
    messages = _messages(item)
    created_at = canonical_time(item["created_at"]) if "created_at" in item else None
    interactions = _interactions(messages, created_at)
    if not interactions:
        raise DataError("it holds no reply of the assistant to learn from", field="messages")
    planned: list[Planned] = [("interaction", row) for row in interactions]
    if item.get("feedback") is not None:
        planned.append(("feedback", _feedback(item["feedback"], interactions[-1])))
    return planned


def _messages(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "messages" in item:
        if not isinstance(item["messages"], list):
            raise DataError("expected a list of messages", field="messages")
        return [_message(message, n) for n, message in enumerate(item["messages"])]
    if "prompt" not in item:
        raise DataError(
            "the line has neither 'messages' nor 'prompt', nor the 'kind' of an exported row",
            field="prompt",
        )
    reply = "response" if "response" in item else "completion"
    if reply not in item:
        raise DataError("it is missing (or 'completion' in its place)", field="response")
    system = [("system", check_text(item["system"], "system"))] if item.get("system") else []
    return [
        *system,
        ("user", check_prompt(item["prompt"], "prompt")),
        ("assistant", check_prompt(item[reply], reply)),
    ]


def _message(message: Any, number: int) -> tuple[str, str]:
    name = f"messages[{number}]"
    if not isinstance(message, dict):
        raise DataError("expected an object with 'role' and 'content'", field=name)
    role = message.get("role")
    if role not in _ROLES:
        raise DataError(f"expected one of {', '.join(_ROLES)}, got {role!r}", field=f"{name}.role")
    return role, check_prompt(message.get("content", ""), f"{name}.content")


def _interactions(messages: list[tuple[str, str]], created_at: str | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    system = "\n\n".join(text for role, text in messages if role == "system") or None
    said: list[str] = []
    for number, (role, text) in enumerate(messages):
        if role == "user":
            said.append(text)
        elif role == "assistant":
            if not said:
                raise DataError(
                    "the assistant speaks before the user has", field=f"messages[{number}].role"
                )
            follows = rows[-1]["id"] if rows else None
            # Over what came before too: "Yes." to two questions is two interactions.
            row_id = sha256_text(follows, system, *said, text)[:32]
            rows.append(
                {
                    "id": row_id,
                    "created_at": created_at or now(),
                    "conversation_id": rows[0]["conversation_id"] if rows else row_id,
                    "model_version": None,
                    "system": system,
                    "prompt": "\n\n".join(said),
                    "response": text,
                    "source": SOURCE,
                    "meta": dump_json({"follows": follows} if follows else {}),
                }
            )
            said = []
    return rows


def _feedback(given: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    kind, edited = given, None
    if isinstance(given, dict) and set(given) == {"edit"}:
        kind, edited = "edit", check_prompt(given["edit"], "feedback.edit")
    elif given not in ("up", "down"):
        raise DataError(
            f"""expected "up", "down" or {{"edit": "better reply"}}, got {given!r}""",
            field="feedback",
        )
    return {
        "id": sha256_text(about["id"], kind, edited)[:32],
        "interaction_id": about["id"],
        "kind": kind,
        "edited": edited,
        "created_at": about["created_at"],
    }
