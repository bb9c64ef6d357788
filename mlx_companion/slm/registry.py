"""Versions of the small modules: registered, checked, switched, taken back.

Why: a module is retrained on new traffic, and the new one is sometimes worse, sometimes damaged.
Every version is a pack (`packs.py`) copied beside the database under one checksum over weights,
thresholds, calibration and rules; the version in use is a row, so switching is one transaction. A
version that turns out damaged is left for the last good one, in the end for the pack that came
with the package, and the fault is recorded::

    registry = SLMRegistry(store)
    new = registry.register_version("context_tracker", "runs/tracker/pack", {"f1": 0.91})
    report = registry.shadow("context_tracker", new.id)     # on recent traffic, see `shadow.py`
    registry.promote(report)                                # by rule, or activate(new.id, why)
    factory = SLMFactory(packs=registry.packs())
    registry.rollback("context_tracker", "f1 fell")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_companion.errors import SLMError, StoreError
from mlx_companion.runtime.files import atomic_dir
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.packs import Pack, copy_pack, load_pack, packaged
from mlx_companion.slm.shadow import (
    FinetuneAdvice,
    PromotionRule,
    ShadowReport,
    TriggerRule,
    advise,
    compare,
    refusal,
)
from mlx_companion.store import ModuleEvent, ModuleVersion, Store

__all__ = ["SHIPPED", "ActiveVersion", "SLMRegistry"]

SHIPPED = "shipped"

Build = Callable[[str, Path], SLMModule[Any]]


@dataclass(frozen=True)
class ActiveVersion:
    """The version of a module that is in use, read and checked.

    Attributes:
        module: whose.
        id: of the version, such as "context_tracker-v0002"; "shipped" for the package's own.
        pack: its content.
        folder: where it lies.
        faults: what was wrong with versions that were to be used before it.
    """

    module: str
    id: str
    pack: Pack
    folder: Path
    faults: tuple[str, ...] = ()


def _build(module: str, folder: Path) -> SLMModule[Any]:
    from mlx_companion.slm.factory import SLMFactory

    return SLMFactory(packs={module: folder}).get_module(module)


class SLMRegistry:
    """The versions of all modules in one store. Processes may share the store.

    Args:
        store: rows of versions and events; copies of packs lie in `packs` beside it.
        build: makes a module from a folder of a pack, for shadow runs.
        shipped: the folder of a module's pack in the package.
    """

    def __init__(
        self,
        store: Store,
        *,
        build: Build = _build,
        shipped: Callable[[str], Path] = packaged,
    ) -> None:
        self.store = store
        self._rows = store.module_versions
        self._build = build
        self._shipped = shipped

    def register_version(
        self,
        module: str,
        folder: str | Path,
        metrics: Mapping[str, Any] | None = None,
        *,
        personal: bool = False,
        note: str = "",
    ) -> ModuleVersion:
        """Check a pack, copy it beside the database and record it; not yet active.

        The same content again returns the version that is there.

        Args:
            module: whose.
            folder: of the pack.
            metrics: held-out figures; the pack's own by default.
            personal: it was trained on this person's traffic, so `forget` takes it along.
            note: kept in the history.

        Raises:
            SLMError: the pack is damaged or another module's.
            DiskFullError: no space; nothing was recorded.
        """
        pack = load_pack(folder, module)
        known = next((one for one in self._rows.all(module) if one.sha256 == pack.sha256), None)
        if known is not None and personal and not known.personal:
            # Or `forget` would leave what was trained on this person's words.
            known = self._rows.make_personal(known.id)
        if known is not None and self._fault(known) is None:
            return known
        target = self.store.folder / "packs" / module / pack.sha256[:16]
        with atomic_dir(target) as new:
            copy_pack(folder, new)
            if load_pack(new, module).sha256 != pack.sha256:
                raise SLMError(f"{folder} was changed while it was registered; register it again")
        if known is not None and self._fault(known) is None:
            # It had been damaged and is whole again.
            return known
        version = self._rows.add(
            module,
            pack.version,
            target,
            pack.sha256,
            metrics=dict(metrics if metrics is not None else pack.metrics),
            personal=personal,
        )
        self._rows.note(module, "register", note or "registered", to_version=version.id)
        return version

    def get_active_version(self, module: str) -> ActiveVersion:
        """The version in use, checked; a damaged one is left for the last good one.

        Raises:
            SLMError: not even the pack that comes with the package can be read.
        """
        faults: list[str] = []
        active = self._rows.active(module)
        for candidate in [active, *self._earlier(module)] if active else []:
            fault = self._fault(candidate)
            if fault is None:
                if not self._leave(active, candidate.id, faults):
                    return self.get_active_version(module)
                pack = load_pack(candidate.folder, module)
                return ActiveVersion(module, candidate.id, pack, candidate.folder, tuple(faults))
            faults.append(fault)
        if not self._leave(active, None, faults):
            return self.get_active_version(module)
        folder = self._shipped(module)
        return ActiveVersion(module, SHIPPED, load_pack(folder, module), folder, tuple(faults))

    def packs(self) -> dict[str, Path]:
        """The folder of each module's version in use, for `SLMFactory`; shipped ones left out."""
        modules = {version.module for version in self._rows.all() if version.active}
        active = [self.get_active_version(module) for module in sorted(modules)]
        return {one.module: one.folder for one in active if one.id != SHIPPED}

    def activate(self, version_id: str, reason: str) -> ModuleVersion:
        """Make a version the one in use.

        Raises:
            StoreError: there is no such version.
            SLMError: it is damaged; the version in use stays.
        """
        version = self._rows.get(version_id)
        if (fault := self._fault(version)) is not None:
            raise SLMError(f"{fault}; the version in use stays")
        if not version.active:
            self._rows.move(version.module, version.id, "activate", reason)
        return self._rows.get(version_id)

    def rollback(self, module: str, reason: str, *, to: str | None = None) -> ActiveVersion:
        """Go back to the good version that was in use before, in the end to the shipped one.

        Args:
            module: whose.
            reason: kept in the history.
            to: go back to this version instead; "shipped" is one.

        Raises:
            SLMError: the shipped pack is in use already, or `to` is damaged or another module's.
        """
        with self.store.transaction():
            if self._rows.active(module) is None:
                raise SLMError(f"{module} runs on its shipped pack; there is nothing to go back to")
            target = to or self._previous_good(module)
            if target not in (None, SHIPPED):
                self._require(module, target)
            self._rows.move(module, None if target == SHIPPED else target, "rollback", reason)
        return self.get_active_version(module)

    def list_versions(self, module: str | None = None) -> list[ModuleVersion]:
        """Every registered version (of one module), oldest first; the shipped pack is no row."""
        return self._rows.all(module)

    def history(self, module: str | None = None) -> list[ModuleEvent]:
        """What happened to the versions (of one module), faults and shadow runs included."""
        return self._rows.events(module)

    def record_metrics(self, module: str, metrics: Mapping[str, float]) -> None:
        """Keep figures of the version in use, such as its accuracy on labelled traffic."""
        active = self._rows.active(module)
        self._rows.note(module, "metrics", "measured", to_version=active.id if active else None,
                        meta=dict(metrics))  # fmt: skip

    def should_finetune(self, module: str, rule: TriggerRule | None = None) -> FinetuneAdvice:
        """Whether there is enough new labelled traffic, or its figures fall; see `shadow.py`."""
        return advise(self.store, module, rule or TriggerRule())

    def shadow(self, module: str, candidate: str | Path, *, limit: int = 200) -> ShadowReport:
        """Run a candidate beside the version in use on recent traffic; nothing is switched.

        Args:
            module: whose.
            candidate: id of a registered version, or the folder of a pack that is none yet.
            limit: inputs at most, the newest.

        Raises:
            StoreError: there is no such version.
            SLMError: the candidate is damaged or another module's.
        """
        name, folder = self._candidate(module, candidate)
        active = self.get_active_version(module)
        old, new = self._build(module, active.folder), self._build(module, folder)
        try:
            traffic = self.store.traffic.recent(module, limit)
            report = compare(module, active.id, name, old, new, traffic)
        finally:
            old.close()
            new.close()
        told = f"tried on {report.inputs} inputs"
        self._rows.note(module, "shadow", told, from_version=active.id, to_version=name,
                        meta=report.to_dict())  # fmt: skip
        return report

    def _candidate(self, module: str, candidate: str | Path) -> tuple[str, Path]:
        if isinstance(candidate, Path):
            # Not the folder's path, which is nobody's business in a history.
            return f"{load_pack(candidate, module).version}, not registered", candidate
        return candidate, self._require(module, candidate).folder

    def _require(self, module: str, version_id: str) -> ModuleVersion:
        """A good version of a module. Raises SLMError when it is none."""
        version = self._rows.get(version_id)
        fault = self._fault(version)
        if fault or version.module != module:
            raise SLMError(fault or f"{version_id} is a version of {version.module}, not {module}")
        return version

    def promote(self, report: ShadowReport, rule: PromotionRule | None = None) -> ModuleVersion:
        """Activate the candidate of a shadow run, when the rule allows it.

        Raises:
            SLMError: the rule forbids it (says why), or another version is in use by now.
        """
        why_not = refusal(report, rule or PromotionRule())
        if why_not is not None:
            raise SLMError(f"{report.candidate} stays a candidate: {why_not}")
        with self.store.transaction():
            if self.get_active_version(report.module).id != report.active:
                raise SLMError(
                    f"{report.candidate} was compared with {report.active}, which is no longer in "
                    "use; run the shadow again"
                )
            told = f"agreed on {report.agreement:.1%} of {report.inputs} inputs"
            return self.activate(report.candidate, told)

    def _fault(self, version: ModuleVersion) -> str | None:
        """What is wrong with a version's pack; None when it is good."""
        try:
            pack = load_pack(version.folder, version.module)
        except SLMError as error:
            return f"{version.id} is damaged: {error}"
        if pack.sha256 != version.sha256:
            return (
                f"{version.id} is damaged: {version.folder} holds {pack.sha256[:12]}..., "
                f"recorded was {version.sha256[:12]}..."
            )
        return None

    def _leave(self, active: ModuleVersion | None, to: str | None, faults: list[str]) -> bool:
        """Leave a damaged version; False when another one is in use by now, which stays."""
        if active is None or not faults:
            return True
        with self.store.transaction():
            now = self._rows.active(active.module)
            if now is None or now.id != active.id:
                return False
            self._rows.move(active.module, to, "fault", "; ".join(faults))
            return True

    def _earlier(self, module: str) -> list[ModuleVersion]:
        """Versions that were in use before the active one, the latest first, each once."""
        active = self._rows.active(module)
        found: list[ModuleVersion] = []
        left = {active.id} if active else set()
        for event in reversed(self._rows.events(module)):
            if event.action == "rollback" and event.from_version:
                # What somebody went back from is nothing to go back to.
                left.add(event.from_version)
            used = event.action in ("activate", "rollback")
            if not used or event.to_version in left or not event.to_version:
                continue
            left.add(event.to_version)
            try:
                found.append(self._rows.get(event.to_version))
            except StoreError:
                continue
        return found

    def _previous_good(self, module: str) -> str | None:
        return next((one.id for one in self._earlier(module) if self._fault(one) is None), None)
