"""`sdfsmis examples`: a library of finished scans, by which the next ones are segmented."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from SDFSMISLib.cli.segment import ManyValues
from SDFSMISLib.console import print_status, progress, table_console
from SDFSMISLib.errors import InputError

if TYPE_CHECKING:
    from SDFSMISLib.examples import LibraryEntry

__all__ = ["examples"]

PRIVACY = "The files contain the grey values of the scans: treat them like the scans."
RESULT, VOLUMES_TABLE = "_seg", "_volumes.csv"  # of what sdfsmis segment writes for a scan into a folder

examples = typer.Typer(
    help="Libraries of finished scans: examples in 3D for the next ones.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

LibraryFolder = Annotated[Path, typer.Argument(metavar="LIBRARY", help="A folder, with one file for each scan.")]


@examples.command(
    cls=ManyValues,
    epilog="Examples, each on one line:\n\n"
    "  sdfsmis examples add livers ct.nii.gz liver.seg.nrrd\n\n"
    "  sdfsmis examples add organs --scans scans/ --labelmaps results/ --label 1=liver 6=spleen",
)
def add(
    library: LibraryFolder,
    scan: Annotated[
        Path | None, typer.Argument(metavar="SCAN", help="Any file that SimpleITK reads, or a DICOM folder.")
    ] = None,
    labelmap: Annotated[
        Path | None, typer.Argument(metavar="LABELMAP", help="Its finished structures, 0 is background.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[=NAME] ...",
            help="Label value to keep, with the name of the structure if the file has none: 1=liver; several may "
            "follow. Default: each label. Structures of several examples are the same if they have the same name; "
            "without one, if they have the same value.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the example. Default: the name of the scan.")
    ] = None,
    scans: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Many scans, in place of SCAN and LABELMAP: a folder of them, or a list."),
    ] = None,
    labelmaps: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Their labelmaps: of the scan a.nii.gz the file a or a_seg with any extension, as segment writes it.",
        ),
    ] = None,
) -> None:
    """Add finished scans: grey values and labels, on a grid of at most 1.5 million voxels.

    A scan that the library has already keeps the structures that are not added again. The files contain the grey
    values of the scans: treat them like the scans.
    """
    wanted = _labels(label)
    if scans is None and labelmaps is None:
        if scan is None or labelmap is None:
            raise InputError("Give a scan and its labelmap, or --scans and --labelmaps with a folder of each.")
        added, failed = [_add(library, scan, labelmap, wanted, name or "")], 0
    elif scans is None or labelmaps is None:
        raise InputError("Give both --scans and --labelmaps: a folder of scans, and the folder of their labelmaps.")
    elif scan is not None or name is not None:
        raise InputError("With --scans and --labelmaps, SCAN, LABELMAP and --name cannot be given; leave them out.")
    else:
        added, failed = _add_cohort(library, scans, labelmaps, wanted)
    for entry in added:
        typer.echo(f"Wrote {entry.path} ({_size([entry])}): {_structures(entry.names)}")
    if added:
        typer.echo(PRIVACY)
    if failed:
        raise typer.Exit(1)


@examples.command("list")
def list_(library: LibraryFolder) -> None:
    """Show the examples of a library, and the structures that it knows."""
    from rich.markup import escape
    from rich.table import Table

    from SDFSMISLib.examples import Library

    entries, structures = Library(library).entries(), Library(library).structures()
    table = Table("name", "structures", "voxels", "mm", "size")
    for entry in entries:
        grid = entry.geometry
        voxels = " × ".join(map(str, reversed(grid.shape)))
        spacing = " × ".join(f"{step:.2f}" for step in grid.spacing)
        table.add_row(escape(entry.name), escape(_structures(entry.names)), voxels, spacing, _size([entry]))
    console = table_console()
    console.print(table)
    count = f"{len(entries)} examples" if len(entries) > 1 else "1 example"
    console.print(f"{count}, {_size(entries)}. Structures, with their label values in results:", highlight=False)
    for one in structures:
        console.print(f"  {one.value} {escape(one.name or 'without a name')}, in {one.examples}", highlight=False)


@examples.command()
def remove(
    library: LibraryFolder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the example, as list shows it.")],
) -> None:
    """Delete the file of an example."""
    from SDFSMISLib.examples import Library

    Library(library).remove(name)
    typer.echo(f"Removed {name} from {library}")


# -- adding


def _labels(texts: Sequence[str] | None) -> dict[int, str]:
    """Name, "" if none was given, by label value; empty for all labels.

    >>> _labels(["1=liver", "6"])
    {1: 'liver', 6: ''}
    """
    labels: dict[int, str] = {}
    for text in texts or ():
        number, _, name = text.partition("=")
        if not number.strip().isdecimal() or not int(number):
            raise InputError(f"--label {text} was given; a label is a whole number from 1, or with its name 1=liver.")
        labels[int(number)] = name.strip()
    return labels


def _add(
    library: Path, scan: Path, labelmap: Path, labels: Mapping[int, str], name: str, all_labels: bool = True
) -> LibraryEntry:
    """The entry of the example. ``all_labels`` refuses a labelmap that lacks some of the labels, not only all."""
    from SDFSMISLib.examples import Example, Library, LibraryEntry
    from SDFSMISLib.images.labelmap import label_values
    from SDFSMISLib.images.volume import Volume, read_labelmap

    finished = read_labelmap(labelmap)
    named = {value: name for value, name in labels.items() if name}
    names = _names_beside(labelmap) | {value: name for value, name in finished.segment_names.items() if name} | named
    finished = replace(finished, segment_names=names)
    wanted = sorted(labels)
    if not all_labels:
        present = label_values(finished.voxels)
        wanted = [value for value in wanted if value in present] or wanted
    path = Library(library).add(Example.of(Volume.read(scan), finished, name, wanted or None))
    entry = LibraryEntry.read(path)
    assert entry is not None
    return entry


def _names_beside(labelmap: Path) -> dict[int, str]:
    """The names in the table of volumes that segment writes beside a labelmap; empty if there is none."""
    from SDFSMISLib.images.files import scan_name

    table = labelmap.with_name(scan_name(labelmap) + VOLUMES_TABLE)
    try:
        with table.open(newline="", encoding="utf-8") as file:
            return {int(row["label"]): row["name"] or "" for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}  # or a table of something else


def _add_cohort(
    library: Path, scans: Path, labelmaps: Path, labels: Mapping[int, str]
) -> tuple[list[LibraryEntry], int]:
    """The entries that were added, and how many scans failed; those, and scans without a labelmap, are named."""
    pairs, without = _pairs(scans, labelmaps)
    for scan in without:
        print_status(f"Left out {scan}: it has no labelmap in {labelmaps}.")
    if not pairs:
        raise InputError(
            f"No scan of {scans} has a labelmap in {labelmaps}; that of the scan a.nii.gz is named a or a{RESULT}."
        )
    added: list[LibraryEntry] = []
    failed = 0
    with progress("Adding", len(pairs)) as advance:
        for number, (name, scan, labelmap) in enumerate(pairs):
            try:
                added.append(_add(library, scan, labelmap, labels, name, all_labels=False))
            except InputError as error:
                print_status(f"Failed: {scan}: {error}")
                failed += 1
            advance(number + 1)
    return added, failed


def _pairs(scans: Path, labelmaps: Path) -> tuple[list[tuple[str, Path, Path]], list[Path]]:
    """Name, scan and labelmap of each scan that has one; and the scans that have none.

    Both folders may be the same. Raises :class:`InputError` for two labelmaps of one scan.
    """
    from SDFSMISLib.cohort.scan_list import find_scans, result_names

    if not labelmaps.is_dir():
        raise InputError(f"--labelmaps {labelmaps} is no folder; give the one that has the labelmaps.")
    found = find_scans([scans])
    names = result_names(found)
    of = {scan: _labelmap(scan, labelmaps / name, names) for scan, name in zip(found, names, strict=True)}
    used = {path.resolve() for path in of.values() if path is not None}
    pairs, without = [], []
    for (scan, labelmap), name in zip(of.items(), names, strict=True):
        if labelmap is not None:
            pairs.append((name.replace("/", "_"), scan, labelmap))
        elif scan.resolve() not in used:
            without.append(scan)
    return pairs, without


def _labelmap(scan: Path, place: Path, names: Collection[str]) -> Path | None:
    from SDFSMISLib.cohort.scan_list import VOLUMES
    from SDFSMISLib.images.files import scan_name

    wanted = (place.name, f"{place.name}{RESULT}")
    files = sorted(place.parent.iterdir()) if place.parent.is_dir() else []
    found = [
        path
        for path in files
        if path.name.lower().endswith(VOLUMES) and scan_name(path) in wanted and path.resolve() != scan.resolve()
    ]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} could both be the labelmap of {scan}; leave one in the folder.")
    return found[0] if found else None


# -- what is printed


def _structures(names: Mapping[int, str]) -> str:
    return ", ".join(name or f"label {value}" for value, name in names.items())


def _size(entries: Sequence[LibraryEntry]) -> str:
    size = sum(entry.path.stat().st_size for entry in entries)
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.0f} kB"
