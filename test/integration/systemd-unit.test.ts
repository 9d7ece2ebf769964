import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { scratchDirectory } from '../support/scratch.ts';

const verifier = ['/usr/bin/systemd-analyze', '/bin/systemd-analyze'].find((path) => existsSync(path));

test('systemd accepts the unit of the host daemon without a word, and would not accept a misspelt one', {
  skip: verifier === undefined && 'this machine has no systemd-analyze',
}, () => {
  using scratch = scratchDirectory();
  const unit = readFileSync(join(installRoot, 'deploy/systemd/ct-host.service'), 'utf8');
  const verify = (name: string, text: string): string => {
    const path = join(scratch.path, name);
    writeFileSync(path, text.replaceAll('/opt/ct/', `${installRoot}/`), { mode: 0o644 });
    const { stdout, stderr } = spawnSync(verifier ?? '', ['verify', path], {
      env: { PATH: '/usr/bin:/bin' },
    });
    // What other units of this machine get wrong is not ours.
    return `${stdout}${stderr}`
      .split('\n')
      .filter((line) => line.includes(name))
      .join('\n');
  };
  assert.equal(verify('ct-host.service', unit), '');
  assert.match(verify('ct-wrong.service', unit.replace('KillMode=', 'KilMode=')), /KilMode/);
  assert.match(unit, /^OOMPolicy=continue$/m, 'a VM that hits its limit does not end the service');
});
