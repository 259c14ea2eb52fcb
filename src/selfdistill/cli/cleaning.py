"""discard, gc, undo, pin, unpin: forget results, remove what is unused, put it back, and keep what matters."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

import typer

from selfdistill.artifacts import trash
from selfdistill.artifacts.lineage import descendants, last_attempt
from selfdistill.artifacts.lock import hold_if_idle
from selfdistill.artifacts.pins import pin as add_pins
from selfdistill.artifacts.pins import read_pins
from selfdistill.artifacts.pins import unpin as remove_pins
from selfdistill.artifacts.provenance import record_discard, record_undo
from selfdistill.artifacts.running import being_computed, refuse_during_workflow, refuse_running
from selfdistill.artifacts.store import ROOT, Artifact, all_artifacts
from selfdistill.artifacts.weight import size_of
from selfdistill.cli.console import RESULTS, ConfigFile, console, in_project, show_table, workspace
from selfdistill.cli.maintenance import find_artifacts
from selfdistill.files import remove
from selfdistill.plan.needed import Needed
from selfdistill.plan.subjects import artifact_ids, targets_showing
from selfdistill.plan.used_configs import UsedConfig, read_used_configs
from selfdistill.schema.errors import UserError

Yes = Annotated[bool, typer.Option("--yes", help="Do it. Without this option the command only says what it would do.")]


def register(app: typer.Typer) -> None:
    for command in (discard, gc, undo, pin, unpin):
        app.command(rich_help_panel=RESULTS)(in_project(command))


def discard(
    names: Annotated[list[str], typer.Argument(help="Artifacts whose results to forget.")],
    dependants: Annotated[bool, typer.Option(help="Also forget what was made from them.")] = True,
    yes: Yes = False,
) -> None:
    """Forget results so that they are computed again (their specs stay). `selfdistill undo` brings them back."""
    named = find_artifacts(names)
    below = descendants(named, all_artifacts())
    refuse_running([*named, *below])
    if yes:
        refuse_during_workflow()
    found = {artifact.name: artifact for artifact in [*named, *(below if dependants else ())]}
    chosen = [artifact for artifact in found.values() if any(path.exists() for path in artifact.result_paths)]
    _refuse_pinned(chosen)
    removal = trash.new_removal("discard")
    for artifact in chosen:
        if yes:
            _discard(artifact, removal)
        console.print(f"{'discarded' if yes else 'would discard'} {artifact.name}", soft_wrap=True)
    # While a table is there, Snakemake has no reason to make what is below it.
    for table in targets_showing(artifact.name for artifact in chosen):
        if yes:
            table.unlink()
        console.print(f"{'removed' if yes else 'would remove'} {table}, which shows them", soft_wrap=True)
    console.print("`selfdistill undo` brings them back." if yes else "Nothing was changed. Add --yes to do it.")


def _discard(artifact: Artifact, removal: trash.Removal) -> None:
    with hold_if_idle(artifact.folder) as is_idle:
        if not is_idle:
            raise being_computed(artifact)
        trash.move_to_trash(removal, artifact.result_paths)
        record_discard(artifact.folder)


def _refuse_pinned(artifacts: Iterable[Artifact]) -> None:
    pins = read_pins()
    for artifact in artifacts:
        if artifact.id in pins:
            reason = pins[artifact.id].reason
            raise UserError(f"{artifact.name} is pinned ({reason}): selfdistill unpin {artifact.key}, and try again.")


def gc(
    configfile: ConfigFile = None,
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", help="Only artifacts finished at least this many days ago.")
    ] = 0,
    only_config: Annotated[
        bool,
        typer.Option(
            "--only-config", help="Keep only what this config needs; ignore other settings files used before."
        ),
    ] = False,
    undo_days: Annotated[
        float,
        typer.Option(
            metavar="DAYS", help="Delete for good what was removed more than this many days ago (0: at once)."
        ),
    ] = 14,
    yes: Yes = False,
) -> None:
    """Move artifacts that nothing needs to the trash, from which `selfdistill undo` brings them back.

    Kept with everything upstream: what the config needs, and other settings that were used; what is pinned; what runs.
    """
    project = workspace(configfile)
    needed = Needed()
    needed.by_config(project)
    alone = [UsedConfig.alone()] if configfile else []
    for used in () if only_config else (*alone, *read_used_configs()):
        needed.by_used_config(used, project.root)
    needed.by_pins(project.root)
    needed.by_jobs(project.root)
    unused = [a for a in all_artifacts(project.root) if a.id not in needed.ids and _age_days(a) >= older_than]
    empty = [artifact for artifact in unused if trash.is_only_planned(artifact.folder)]
    removable = [artifact for artifact in unused if artifact not in empty]
    leftovers = [a for a in all_artifacts(project.root) if a.is_sealed and a.state.is_dir() and a not in removable]
    show_table(
        ("artifact", "finished", "size"), [(a.name, _date(a), f"{size_of(a.folder) / 1e6:.1f} MB") for a in removable]
    )
    for remark in needed.remarks:
        console.print(remark, soft_wrap=True, markup=False)
    if yes:
        _remove(removable, empty, leftovers, undo_days)
    verb = "removed" if yes else "would be removed (add --yes)"
    for count, what in (
        (len(empty), "planned folders without results"),
        (len(leftovers), "resume states of finished runs"),
    ):
        if count:
            console.print(f"{count} {what} {verb}.")
    console.print(f"{len(removable)} artifacts {verb}, {len(needed.ids)} needed by the config.")


def _remove(removable: list[Artifact], empty: list[Artifact], leftovers: list[Artifact], undo_days: float) -> None:
    refuse_during_workflow()
    removal = trash.new_removal("gc")
    for artifact in [*removable, *empty, *leftovers]:
        with hold_if_idle(artifact.folder) as is_idle:
            if not is_idle:
                console.print(f"{artifact.name} is being computed now, and is kept.", soft_wrap=True)
            elif artifact in leftovers:
                remove(artifact.state)
            elif artifact in empty:
                remove(artifact.folder)
            else:
                trash.move_to_trash(removal, [artifact.folder], artifact.root)
    for old in trash.empty(days=undo_days):
        console.print(f"{len(old.artifacts)} artifacts of {old.when:%Y-%m-%d} were removed for good.")


def _age_days(artifact: Artifact) -> float:
    return (datetime.now(UTC) - _last_used(artifact)).total_seconds() / 86400


def _last_used(artifact: Artifact) -> datetime:
    """When the last attempt ended or started; without a record when it was planned."""
    attempt = last_attempt(artifact.folder)
    try:
        return datetime.fromisoformat(attempt.get("finished") or attempt["started"])
    except (LookupError, ValueError, TypeError):
        return datetime.fromtimestamp((artifact.folder / "spec.json").stat().st_mtime, UTC)


def _date(artifact: Artifact) -> str:
    return f"{_last_used(artifact):%Y-%m-%d %H:%M}"


def undo(
    removal: Annotated[str | None, typer.Argument(help="Which removal (default: the last one).")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Only list what can be put back.")] = False,
) -> None:
    """Put back what gc or discard removed."""
    found = {entry.name: entry for entry in trash.removals()}
    if listed or not found:
        rows = [
            (e.name, e.command, f"{e.when:%Y-%m-%d %H:%M}", len(e.artifacts), f"{size_of(e.folder) / 1e6:.1f} MB")
            for e in found.values()
        ]
        show_table(("removal", "command", "when (UTC)", "artifacts", "size"), rows)
        return
    if removal is not None and removal not in found:
        raise UserError(f"there is no removal `{removal}`. `selfdistill undo --list` lists them.")
    restored, kept = trash.put_back(found[removal or next(reversed(found))])
    for name in restored:
        if Artifact(ROOT / name).is_sealed:
            record_undo(ROOT / name)
        console.print(f"put back {name}", soft_wrap=True)
    for name, reason in kept.items():
        console.print(f"{name} {reason}: what was removed stays in the trash", soft_wrap=True)
    if not restored and not kept:
        console.print("nothing was left in the trash: nothing had been moved, or all of it is back")


def pin(
    names: Annotated[
        list[str] | None, typer.Argument(help="Artifacts, experiments or tables (default: list pins).")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why they are kept.")] = "",
    configfile: ConfigFile = None,
) -> None:
    """Keep artifacts, and what they were made from, whatever the config says: gc and discard leave them alone."""
    if names:
        if not reason.strip():
            raise UserError("give a reason (--reason): it tells others later whether the pin is still needed.")
        project = workspace(configfile)
        folders = {artifact.id: artifact.name for artifact in all_artifacts(project.root)}
        ids = [identity for name in names for identity in artifact_ids(project, name)]
        for identity in ids:
            if identity not in folders:
                raise UserError(f"{identity} is not on this machine, so it cannot be pinned.")
        add_pins({identity: folders[identity] for identity in ids}, reason.strip())
    rows = [(entry.name, entry.reason, entry.since[:10]) for entry in read_pins().values()]
    show_table(("pinned", "reason", "since"), sorted(rows))


def unpin(names: Annotated[list[str], typer.Argument(help="Pinned artifacts, by key or name.")]) -> None:
    """Remove pins."""
    pins = read_pins()
    chosen = []
    for name in names:
        found = [i for i, entry in pins.items() if name in (i, i.split("/")[1], entry.name, str(ROOT / entry.name))]
        if not found:
            raise UserError(f"`{name}` is not pinned. `selfdistill pin` lists what is.")
        chosen += found
    remove_pins(chosen)
    console.print(f"{len(chosen)} pins removed.")
