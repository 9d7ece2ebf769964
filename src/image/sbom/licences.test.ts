import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { installRoot } from '../../core/install.ts';
import { declaredLicences, KNOWN_SPDX_IDS, toSpdx } from './licences.ts';

test('licences of Debian become SPDX expressions where all of them are known', () => {
  const cases: readonly (readonly [string, string | undefined])[] = [
    ['GPL-2+', 'GPL-2.0-or-later'],
    ['GPL-2.0', 'GPL-2.0-only'],
    ['gpl-3', 'GPL-3.0-only'],
    ['LGPL-2.1+', 'LGPL-2.1-or-later'],
    ['Expat', 'MIT'],
    ['GPL-1+ or Artistic', 'GPL-1.0-or-later OR Artistic-1.0-Perl'],
    ['Expat and ISC or Zlib', 'MIT AND ISC OR Zlib'],
    // An operand that is not known, a comma, an exception, a version that is not said, an operator too many.
    ['GPL-2+ or permissive', undefined],
    ['GPL-2+, and Expat', undefined],
    ['GPL-3+ with Bison exception', undefined],
    ['GPL', undefined],
    ['GPL-2+ or', undefined],
    ['or', undefined],
    ['', undefined],
    ['public-domain', undefined],
    ['GPL-2+ GPL-3+', undefined],
  ];
  for (const [name, expected] of cases) assert.equal(toSpdx(name), expected, name);
});

test('every identifier is on the list of SPDX', () => {
  const path = 'node_modules/@cyclonedx/cyclonedx-library/res/schema/spdx.SNAPSHOT.schema.json';
  const list = JSON.parse(readFileSync(join(installRoot, path), 'utf8')) as { enum: string[] };
  assert.deepEqual(
    KNOWN_SPDX_IDS.filter((id) => !list.enum.includes(id)),
    [],
  );
});

test('licences are read from machine-readable copyright files only, of files and not of texts', () => {
  const paragraphs =
    'Files: *\nCopyright: x\nLicense: GPL-2+\n long\n text\n\nFiles: y\nLicense:  Expat \n\nLicense: BSD-3-clause\n text\n';
  for (const format of [
    'https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/',
    'http://dep.debian.net/deps/dep5/',
  ]) {
    assert.deepEqual(declaredLicences(`Format: ${format}\n\n${paragraphs}`), ['Expat', 'GPL-2+']);
  }
  assert.equal(declaredLicences(paragraphs), undefined);
  assert.equal(declaredLicences('This package was put together by somebody.\n\nLicense: GPL\n'), undefined);
  assert.equal(declaredLicences(''), undefined);
  assert.equal(declaredLicences('Format: copyright-format/1.0\n'), undefined);
});
