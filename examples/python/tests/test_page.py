import subprocess
import sys
import unittest

from release_page.page import render
from release_page.releases import parse_releases


class PageTest(unittest.TestCase):
    def test_texts_are_escaped(self) -> None:
        page = render(parse_releases('[[release]]\nversion = "1.0"\ndate = 2026-01-01\nnotes = ["<script>"]\n'))
        self.assertIn("<li>&lt;script&gt;</li>", page)
        self.assertNotIn("<script>", page)

    def test_the_program_writes_the_page_of_a_file(self) -> None:
        command = [sys.executable, "-m", "release_page", "releases.toml"]
        page = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        self.assertLess(page.index("2.0.0rc1"), page.index("1.10.0 (current)"))
        self.assertLess(page.index("1.10.0 (current)"), page.index("1.9.1"))
