"""Finds files by folder and by pattern, and reports what it leaves out. Reads each folder once, even with links to
it."""

from __future__ import annotations

import errno
import glob
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

NOT_MEDIA = "not named like a video or an image"
NOT_A_FILE = "not a regular file"
BROKEN_LINK = "a link to a file that does not exist"


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is left out, and why. `locked`: whether it is an unreadable folder, so clips may be
    missing."""

    path: str
    reason: str
    locked: bool = False


@dataclass
class Found:
    """The contents of a folder, at any depth."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def walk(folder: str, wanted: Callable[[str], bool]) -> Found:
    """The files in `folder` whose names are `wanted`, sorted by their paths.

    Links to folders are followed last, and each folder is read once, so links may form loops. Files whose names begin
    with a dot, and texts that `--sidecar` wrote, are left out without a report.
    """
    found = Found()
    seen: set[str] = set()
    links = deque([folder])
    while links:
        folders = [links.popleft()]
        while folders:
            here = folders.pop()
            place = os.path.realpath(here)
            if place in seen:
                continue
            seen.add(place)
            try:
                with os.scandir(here) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except OSError as error:
                found.left_out.append(LeftOut(here, f"the folder cannot be read: {error.strerror}", locked=True))
                continue
            found.folders.append(str(Path(here)))
            stems = {os.path.splitext(entry.name)[0] for entry in entries if wanted(entry.name)}
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                if _is(entry.is_dir):
                    (links if entry.is_symlink() else folders).append(entry.path)
                elif entry.name.startswith(".") or (suffix == ".txt" and stem in stems and not wanted(entry.name)):
                    continue
                elif not wanted(entry.name):
                    found.left_out.append(LeftOut(entry.path, NOT_MEDIA))
                elif _is(entry.is_file):
                    found.files.append(str(Path(entry.path)))
                else:
                    found.left_out.append(LeftOut(entry.path, BROKEN_LINK if entry.is_symlink() else NOT_A_FILE))
    found.files.sort(key=Path)
    return found


def matches(pattern: str, locked: list[LeftOut] | None = None) -> list[str]:
    """The sorted paths that match a shell pattern. `**` matches folders at any depth, links included, each folder once.

    `locked`: gets the folders that cannot be read and may contain further matches.
    """
    locked = [] if locked is None else locked
    parts = Path(pattern).parts
    at = parts.index("**") if "**" in parts else len(parts)
    roots = [str(Path(*parts[:at]))]
    if glob.has_magic(roots[0]):
        roots = sorted(glob.glob(roots[0]))
        locked += _locked(parts[:at])
    if at == len(parts):
        return roots
    found, hidden = [], any(part.startswith(".") for part in parts[at:])
    for root in roots:
        everything = walk(root, lambda name: True)
        for one in everything.left_out:
            names = Path(one.path).relative_to(root).parts
            if one.locked and (hidden or not any(name.startswith(".") for name in names)):
                locked.append(one)
        for path in [*everything.files, *everything.folders]:
            if _fits(Path(path).relative_to(root).parts, parts[at:]):
                found.append(path)
    return sorted(found)


def _locked(parts: Sequence[str]) -> list[LeftOut]:
    """The folders that `glob.glob` skips without an error because they cannot be read or entered."""
    found = []
    for at in range(1 if os.path.isabs(parts[0]) else 0, len(parts)):
        head, needed = str(Path(*parts[:at])), os.X_OK | (os.R_OK if glob.has_magic(parts[at]) else 0)
        for folder in glob.glob(head) if glob.has_magic(head) else [head]:
            if os.path.isdir(folder) and not os.access(folder, needed, effective_ids=True):
                found.append(LeftOut(folder, f"the folder cannot be read: {os.strerror(errno.EACCES)}", locked=True))
    return found


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path's names fit a pattern's parts."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        if _fits(names, pattern[1:]):
            return True
        return bool(names) and not names[0].startswith(".") and _fits(names[1:], pattern)
    if not names or (names[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # for example, a link to itself
        return False
