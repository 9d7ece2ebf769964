"""Renders releases as HTML."""

from markupsafe import Markup

from .releases import Release, newest_stable

PAGE = Markup("<!doctype html>\n<title>Releases</title>\n<h1>Releases</h1>\n{}")
SECTION = Markup("<h2>{version}{mark}</h2>\n<p>{date}</p>\n<ul>\n{notes}</ul>\n")
NOTE = Markup("<li>{}</li>\n")


def render(releases: list[Release]) -> str:
    """A whole page; texts of releases are escaped."""
    newest = newest_stable(releases)
    sections = (
        SECTION.format(
            version=release.version,
            mark=" (current)" if release is newest else "",
            date=release.date.isoformat(),
            notes=Markup().join(NOTE.format(note) for note in release.notes),
        )
        for release in releases
    )
    return str(PAGE.format(Markup().join(sections)))
