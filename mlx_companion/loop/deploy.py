"""Step 7, deploy or roll back: which version answers from now on.

The adapter is copied to its final place and loaded from there the way it will be served;
only when it answers differently from the base is the version created and, in one
transaction, made the active one. A version is never changed afterwards, so rolling back
is moving the pointer.
"""

from __future__ import annotations

from typing import Any

from mlx_companion.errors import StoreError
from mlx_companion.loop.context import RoundContext
from mlx_companion.lora import save_adapter, set_multiplier
from mlx_companion.store import Example, Store, Version

__all__ = ["deploy", "diff", "promote", "rollback"]

_METRICS = (
    "items", "before", "after", "p", "scale", "relevance_after", "perplexity_after",
    "divergence", "distinct_after",
)  # fmt: skip


def deploy(ctx: RoundContext) -> dict[str, Any]:
    """Carry out the gate's decision; the payload says what is active now."""
    gate = ctx.payload("gate")
    if gate["outcome"] != "deploy" or ctx.config.mode == "dry-run":
        ctx.companion.use(ctx.base_version)
        return _outcome(ctx, None, deployed=False)
    candidate = _stored_candidate(ctx, gate)
    if ctx.config.mode == "review":
        return _outcome(ctx, candidate, deployed=False)
    active = ctx.store.versions.active()
    if active is None or active.id != candidate.id:
        ctx.store.versions.activate(candidate.id, f"round {ctx.round.number}: {gate['summary']}")
    return _outcome(ctx, candidate, deployed=True)


def promote(store: Store, version_id: str, reason: str = "promoted by hand") -> Version:
    """Make a version the active one.

    Raises:
        StoreError: no such version.
        AdapterError: its adapter is missing or changed; the active version stays.
    """
    store.versions.activate(version_id, reason)
    return store.versions.get(version_id)


def rollback(store: Store, reason: str = "rolled back by hand", to: str | None = None) -> Version:
    """Make the version that was active before (or `to`) the active one.

    Raises:
        StoreError: there is none.
        AdapterError: its adapter is missing or changed; the active version stays.
    """
    store.versions.rollback(reason, to=to)
    active = store.versions.active()
    if active is None:
        raise StoreError("no version is active after the rollback; promote one by its id")
    return active


def diff(store: Store, old: str, new: str) -> dict[str, Any]:
    """What two versions are and how they answered the same gate prompts.

    Args:
        old, new: version ids.

    Returns:
        "metrics": name -> (old, new); "examples": prompt and both replies, where a round
        tested both.

    Raises:
        StoreError: no such version.
    """
    first, second = store.versions.get(old), store.versions.get(new)
    names = sorted({*first.metrics, *second.metrics} - {"gate_label"})
    return {
        "metrics": {name: (first.metrics.get(name), second.metrics.get(name)) for name in names},
        "examples": _shared_examples(store, first, second),
    }


def _stored_candidate(ctx: RoundContext, gate: dict[str, Any]) -> Version:
    """The candidate as a version: adapter in its final place, loaded from there, and acting."""
    trained = ctx.payload("train")
    companion = ctx.companion
    companion.use_adapter(
        ctx.store.folder / trained["adapter"], trained["adapter_sha256"], "candidate"
    )
    set_multiplier(companion.lm.model, gate["scale"])
    folder = ctx.store.adapters_dir / f"round-{ctx.round.number:04d}"
    sha256 = save_adapter(
        folder,
        companion.lm.model,
        ctx.config.lora,
        companion.lm.base_sha256,
        {"round": ctx.round.number, "scale": gate["scale"]},
    )
    companion.use_adapter(folder, sha256, "candidate")
    companion.check_adapter_acts()
    version = ctx.store.versions.create(
        name=f"round {ctx.round.number}",
        parent=ctx.base_version.id,
        adapter_path=folder,
        adapter_sha256=sha256,
        base_sha256=companion.lm.base_sha256,
        model_source=companion.lm.source,
        metrics={name: gate[name] for name in _METRICS} | {"gate_label": gate["after_label"]},
        round_id=ctx.round.id,
    )
    companion.version_id = version.id
    return version


def _outcome(ctx: RoundContext, candidate: Version | None, *, deployed: bool) -> dict[str, Any]:
    active = ctx.store.versions.active()
    version = active.id if active else ctx.base_version.id
    if deployed:
        told = f"{version} is active now"
    elif candidate is not None:
        told = f"{candidate.id} waits for `mlx-companion promote {candidate.id}`"
    else:
        told = f"{version} stays active"
    return {
        "deployed": deployed,
        "candidate": None if candidate is None else candidate.id,
        "version": version,
        "summary": told,
    }


def _shared_examples(store: Store, first: Version, second: Version) -> list[dict[str, str]]:
    """Replies of both to the prompts of a gate that tested them."""
    for version in (second, first):
        if version.round_id is None:
            continue
        replies = [_replies(store, version.round_id, each) for each in (first, second)]
        shared = replies[0].keys() & replies[1].keys()
        if shared:
            return [
                {
                    "prompt": replies[0][key].prompt,
                    "old": replies[0][key].response,
                    "new": replies[1][key].response,
                }
                for key in sorted(shared)
            ]
    return []


def _replies(store: Store, round_id: str, version: Version) -> dict[str, Example]:
    label = version.metrics.get("gate_label") if version.round_id == round_id else version.id
    rows = store.examples.for_round(round_id, purpose="gate", model_version=label)
    return {row.prompt_sha: row for row in rows}
