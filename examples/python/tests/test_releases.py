import unittest

from release_page.releases import newest_stable, parse_releases


def source(*versions: str) -> str:
    return "".join(f'[[release]]\nversion = "{version}"\ndate = 2026-01-01\n' for version in versions)


class ParseTest(unittest.TestCase):
    def test_versions_are_sorted_as_versions(self) -> None:
        releases = parse_releases(source("1.9.1", "1.10.0", "2.0.0rc1", "1.10.0.post1"))
        self.assertEqual([str(r.version) for r in releases], ["2.0.0rc1", "1.10.0.post1", "1.10.0", "1.9.1"])

    def test_the_newest_stable_release_is_no_release_candidate(self) -> None:
        self.assertEqual(str(newest_stable(parse_releases(source("1.0", "2.0rc1"))).version), "1.0")
        self.assertIsNone(newest_stable(parse_releases(source("2.0rc1"))))
        self.assertIsNone(newest_stable(parse_releases("")))

    def test_what_is_wrong_is_said(self) -> None:
        for text, message in [
            (source("one"), "release 1 has no valid version"),
            (source("1.0", "1.0.0"), "a version is there twice"),
            ('[[release]]\nversion = "1.0"\ndate = "today"\n', "release 1.0 has no date"),
        ]:
            with self.subTest(message), self.assertRaisesRegex(ValueError, message):
                parse_releases(text)
