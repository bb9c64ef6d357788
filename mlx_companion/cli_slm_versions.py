"""`mlx-companion slm register`, `shadow`, `activate`, `rollback`, `versions`: the registry's verbs.

The way of a new pack: `shadow` tries it on what really came in and says where it differs,
`register` copies it beside the database, `activate` switches, `rollback` goes back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_companion.cli_parts import AsJson, DataDir, flag, make_console, option, print_json
from mlx_companion.errors import ConfigError, SLMError

if TYPE_CHECKING:
    from rich.table import Table

    from mlx_companion.slm.registry import SLMRegistry
    from mlx_companion.slm.shadow import ShadowReport
    from mlx_companion.store import ModuleVersion

WHICH = "research_classifier, personality_guard, context_tracker or drift_monitor."
_VERSION = "Id of a version, its number, or shipped, the package's own."
_NEXT = "a conversation that is running takes it up when it starts again"
_NO_INPUTS = (
    "There is nothing to try it on yet: inputs are kept from conversations with the modules "
    "(`chat --modules`, or a program's Companion)."
)
_REASON = "Why; kept in the history."

Module = Annotated[str, typer.Argument(help=WHICH)]
Reason = Annotated[str, option("TEXT", _REASON, "--reason")]


def register(
    module: Module,
    folder: Annotated[Path, typer.Argument(help="Folder of the pack.")],
    note: Annotated[str, option("TEXT", "What is new about it; kept in the history.")] = "",
    personal: Annotated[
        bool, flag("--personal", "Trained on this person's words: forgetting takes it along.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Check a pack and keep a copy of it as a version; the version in use stays."""
    from mlx_companion.slm.registry import SLMRegistry
    from mlx_companion.store import Store

    _require_packaged(module)
    with Store() as store:
        version = SLMRegistry(store).register_version(module, folder, personal=personal, note=note)
    print(version.id)


def shadow(
    module: Module,
    candidate: Annotated[str, typer.Argument(help="Folder of a pack, or a version.")],
    limit: Annotated[int, option("N", "The newest inputs, at most so many (200).")] = 200,
    show: Annotated[int, option("N", "Differences to print (5).")] = 5,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Try a candidate on the last inputs beside the version in use; nothing is switched.

    It prints where the two differ, and whether the rule for a switch is met.
    """
    from mlx_companion.slm.registry import SLMRegistry
    from mlx_companion.slm.shadow import PromotionRule, refusal
    from mlx_companion.store import Store

    _require_packaged(module)
    if limit < 1 or show < 0:
        raise ConfigError("--limit is at least 1, --show at least 0")
    with Store() as store, make_console(stderr=True).status("trying it"):
        registry = SLMRegistry(store)
        path = Path(candidate)
        which = path if path.is_dir() else _version_id(registry, module, candidate)
        report = registry.shadow(module, which, limit=limit)
    why_not = refusal(report, PromotionRule())
    if as_json:
        shown = {"differences": report.differences[:show], "refusal": why_not}
        print_json(report.to_dict() | shown)
    else:
        _tell_shadow(report, why_not, show)


def activate(
    module: Module,
    version: Annotated[str, typer.Argument(help=_VERSION)],
    reason: Reason = "activated by hand",
    data_dir: DataDir = None,
) -> None:
    """Let a registered version answer from now on; it is checked first."""
    from mlx_companion.slm.registry import SHIPPED, SLMRegistry
    from mlx_companion.store import Store

    _require_packaged(module)
    with Store() as store:
        registry = SLMRegistry(store)
        if version == SHIPPED:
            active = registry.rollback(module, reason, to=SHIPPED).id
        else:
            active = registry.activate(_version_id(registry, module, version), reason).id
    _tell_active(module, active)


def rollback(
    module: Module,
    to: Annotated[str | None, option("VERSION", _VERSION)] = None,
    reason: Reason = "rolled back by hand",
    data_dir: DataDir = None,
) -> None:
    """Go back to the good version that was in use before, in the end to the package's own."""
    from mlx_companion.slm.registry import SHIPPED, SLMRegistry
    from mlx_companion.store import Store

    _require_packaged(module)
    with Store() as store:
        registry = SLMRegistry(store)
        if to not in (None, SHIPPED):
            to = _version_id(registry, module, to)
        active = registry.rollback(module, reason, to=to).id
    _tell_active(module, active)


def versions(
    module: Annotated[str | None, typer.Argument(help=WHICH)] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """List the versions of the modules, or of one with its figures; a star marks those in use.

    The pack that comes with the package is called shipped.
    """
    from dataclasses import asdict

    from mlx_companion.slm import MODULES
    from mlx_companion.slm.registry import SLMRegistry
    from mlx_companion.store import Store

    if module is not None:
        require_module(module, MODULES)
    names = MODULES if module is None else (module,)
    with Store() as store:
        registry = SLMRegistry(store)
        registered = {name: registry.list_versions(name) for name in names}
    found = {
        name: [_shipped(name, all_), *(asdict(one) for one in all_)]
        for name, all_ in registered.items()
    }
    if as_json:
        print_json(found)
    else:
        make_console().print(_version_table(found))


def require_module(module: str, known: tuple[str, ...]) -> None:
    """Raises ConfigError when there is no such module; names the nearest."""
    from mlx_companion.runtime.config import nearest

    if module not in known:
        raise ConfigError(f"there is no module '{module}'{nearest(module, known)}")


def _require_packaged(module: str) -> None:
    from mlx_companion.slm import MODULES

    require_module(module, MODULES)


def _version_id(registry: SLMRegistry, module: str, text: str | None) -> str:
    """The id of a version that was named in full or by its number.

    Raises:
        SLMError: there is none; names those that there are.
    """
    from mlx_companion.runtime.config import nearest

    ids = [one.id for one in registry.list_versions(module)]
    given = str(text)
    number = given.lower().removeprefix("v")
    full = f"{module}-v{int(number):04d}" if number.isdecimal() else given
    if full in ids:
        return full
    if not ids:
        raise SLMError(f"no version of {module} is registered, nor is '{given}' a folder of a pack")
    told = nearest(full, ids) or f"; there are {', '.join(ids[-5:])}"
    raise SLMError(f"there is no version '{given}' of {module}{told}")


def _tell_active(module: str, version: str) -> None:
    print(version)
    typer.echo(f"{module} answers with {version} from now on; {_NEXT}", err=True)


def _tell_shadow(report: ShadowReport, why_not: str | None, show: int) -> None:
    from mlx_companion.loop.console import plain_table, short

    console = make_console()
    if not report.inputs:
        console.print(_NO_INPUTS, markup=False)
        return
    table = plain_table("", report.active, report.candidate)
    old, new = report.active_seconds, report.candidate_seconds
    table.add_row("median", f"{old * 1e3:,.1f} ms", f"{new * 1e3:,.1f} ms")
    if report.labelled:
        rights = (f"{share:.1%}" for share in (report.active_right, report.candidate_right))
        table.add_row(f"right, of {report.labelled:,} known answers", *rights)
    table.add_row("failures", "", f"{report.failures:,}")
    console.print(table)
    same = round(report.agreement * report.inputs)
    console.print(f"the same answer to {same:,} of {report.inputs:,} inputs")
    for one in report.differences[:show]:
        console.print(f"  {short(_said(one['input']), 70)}", markup=False)
        old_one, new_one = one["active"], one["candidate"]
        console.print(f"    {report.active}: {short(_answer(old_one, new_one), 70)}", markup=False)
        console.print(
            f"    {report.candidate}: {short(_answer(new_one, old_one), 70)}", markup=False
        )
    verdict = f"stays a candidate: {why_not}" if why_not else "may take over: register, activate"
    console.print(f"{report.candidate} {verdict}", markup=False)


def _said(item: Any) -> str:
    """The text of an input, whatever shape it has."""
    if isinstance(item, dict):
        item = next((item[name] for name in ("query", "text", "response") if name in item), item)
    return str(item)


def _answer(decision: Any, other: Any) -> str:
    """What a version decided, as far as the other one decided otherwise."""
    if decision is None:
        return "failed"
    differs = [name for name in decision if other is None or decision[name] != other.get(name)]
    return ", ".join(f"{name} {decision[name]}" for name in differs)


def _version_table(found: dict[str, list[dict[str, Any]]]) -> Table:
    """The versions; of one module its name is left out, and figures are shown."""
    from mlx_companion.loop.console import plain_table

    one_only = len(found) == 1
    columns = ["", *([] if one_only else ["module"]), "version", "label", "made", "SHA-256"]
    table = plain_table(*columns)
    for column in table.columns:
        column.no_wrap = True
    if one_only:
        table.add_column("figures")
    for name, versions_ in found.items():
        for one in versions_:
            id_ = one["id"].removeprefix(f"{name}-")
            told = (id_, one["label"], one["created_at"][:16], one["sha256"][:12])
            mark = "*" if one["active"] else ""
            figures = (one.get("problem") or _figures(one["metrics"]),) if one_only else ()
            table.add_row(mark, *(() if one_only else (name,)), *told, *figures)
    return table


def _shipped(name: str, registered: list[ModuleVersion]) -> dict[str, Any]:
    """The pack that comes with the package, as an entry of the list."""
    from mlx_companion.slm.packs import load_pack, packaged
    from mlx_companion.slm.registry import SHIPPED

    active = not any(one.active for one in registered)
    entry: dict[str, Any] = {"id": SHIPPED, "module": name, "active": active, "created_at": ""}
    try:
        own = load_pack(packaged(name), name)
    except SLMError as error:
        return entry | {"label": "damaged", "sha256": "", "metrics": {}, "problem": str(error)}
    return entry | {"label": own.version, "sha256": own.sha256, "metrics": own.metrics}


def _figures(metrics: dict[str, Any]) -> str:
    numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    told = (
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.3g}"
        for name, value in list(numbers.items())[:3]
    )
    return ", ".join(told)
