"""The chat's commands about what was learned: show it, take it back, forget it, show the trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_companion.errors import DataError

if TYPE_CHECKING:
    from mlx_companion.loop.chat import Learning
    from mlx_companion.store import ContextEntry

__all__ = ["COMMANDS", "LEARNED_HELP", "obey"]

# `/help` shows these always: who looks for them should learn what they need.
LEARNED_HELP = """\
/trace      how the last reply came about (this and the next with --modules)
/learned    what is known of you, and what waits for your word
/undo [ID]  take back the last thing that was learned, or this one
/yes ID     agree to a change that waits
/no ID      refuse it
/forget     delete what was learned; /forget all: the conversations too"""
COMMANDS = ("trace", "learned", "undo", "yes", "no", "forget")


def obey(learning: Learning | None, command: str, text: str) -> str:
    """Do what a command says.

    Args:
        learning: the companion; None where the modules are not in use.
        command: one of `COMMANDS`.
        text: what followed it.

    Returns:
        What to tell the person.

    Raises:
        DataError: the modules are not in use, or something is missing after the command.
        StoreError: there is no such update.
    """
    if learning is None:
        raise DataError(f"/{command} needs the modules: leave, and start with chat --modules")
    match command:
        case "trace":
            trace = learning.last_trace
            return "there is no reply yet" if trace is None else trace.text()
        case "learned":
            return _known(learning)
        case "undo":
            return _undone(learning, text)
        case "forget":
            return _forgotten(learning, text)
        case "yes" | "no" if not text:
            raise DataError(f"give the id that /learned shows: /{command} ID")
        case "yes":
            change = learning.approve(text)
            return f"{change.key} is {change.after!r} from now on"
    learning.reject(text)
    return "dropped"


def _known(learning: Learning) -> str:
    lines = [_line(entry) for entry in learning.learned()]
    waiting = learning.pending()
    if waiting:
        lines += ["waiting for your word (/yes ID, /no ID):", *map(_line, waiting)]
    return "\n".join(lines) or "nothing yet"


def _line(entry: ContextEntry) -> str:
    how = "said" if entry.explicit else f"inferred, {entry.confidence:.0%}"
    why = f' from "{entry.evidence}"' if entry.evidence else ""
    return f"{entry.key} = {entry.value!r} ({how}{why})  {entry.id}"


def _undone(learning: Learning, text: str) -> str:
    change = learning.undo(text or None)
    if change is None:
        return "nothing is known that could be taken back"
    now = "unknown" if change.after is None else repr(change.after)
    return f"{change.key} was {change.before!r} and is {now} now"


def _forgotten(learning: Learning, text: str) -> str:
    if text not in ("", "all"):
        raise DataError("say /forget, or /forget all to delete the conversations too")
    counts = learning.forget(conversations=text == "all")
    files = counts.pop("files", 0) + counts.pop("backups", 0)
    return f"forgotten: {sum(counts.values()):,} rows and {files:,} files"
