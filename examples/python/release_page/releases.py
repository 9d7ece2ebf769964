"""Reads and sorts releases."""

import tomllib
from dataclasses import dataclass
from datetime import date

from packaging.version import InvalidVersion, Version


@dataclass(frozen=True)
class Release:
    version: Version
    date: date
    notes: tuple[str, ...]


def parse_releases(source: str) -> list[Release]:
    """All releases of a TOML text, newest version first. Raises ValueError that says which one is wrong."""
    releases = []
    for number, entry in enumerate(tomllib.loads(source).get("release", []), start=1):
        try:
            version = Version(entry["version"])
        except (KeyError, InvalidVersion) as error:
            raise ValueError(f"release {number} has no valid version") from error
        if not isinstance(entry.get("date"), date):
            raise ValueError(f"release {version} has no date")
        releases.append(Release(version, entry["date"], tuple(entry.get("notes", []))))
    if len({release.version for release in releases}) < len(releases):
        raise ValueError("a version is there twice")
    return sorted(releases, key=lambda release: release.version, reverse=True)


def newest_stable(releases: list[Release]) -> Release | None:
    """The newest release that is no pre-release."""
    return next((release for release in releases if not release.version.is_prerelease), None)
