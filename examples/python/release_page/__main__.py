"""Prints the page of a file: `python -m release_page releases.toml`."""

import sys
from pathlib import Path

from .page import render
from .releases import parse_releases

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m release_page FILE")
    sys.stdout.write(render(parse_releases(Path(sys.argv[1]).read_text(encoding="utf-8"))))
