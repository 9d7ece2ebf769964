/** The policy that counts on a host, as the daemon keeps it: read again when files or presets change, kept for its runs. */
import assert from 'node:assert/strict';
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { CtError } from '../../src/core/errors.ts';
import type { PresetResolution } from '../../src/egress/presets/index.ts';
import { PolicyKeeper } from '../../src/host/policy.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

function write(ctHome: string, egress: string): void {
  mkdirSync(join(ctHome, 'policy'), { recursive: true, mode: 0o700 });
  writeFileSync(
    join(ctHome, 'policy/data.yml'),
    `version: 1
egress: ${egress}
admission: {trust: [local], repositories: ['*'], refs: ['*'], actors: ['*'], images: ['*']}
limits: {cpus: 4, memory: 4G, disk: 4G, timeout: 1h}
`,
    { mode: 0o600 },
  );
}

/** `npm` stands for `host`; without one, it is not configured. */
class Presets {
  host: string | undefined = 'one.test';
  asked = 0;

  async resolve(names: readonly string[]): Promise<PresetResolution[]> {
    return names.map((name) => {
      this.asked += 1;
      if (this.host === undefined) throw new CtError('PRESET_UNCONFIGURED', `no ${name}`);
      const destination = {
        rule: name,
        host: this.host,
        port: 443,
        protocol: 'tls',
        addresses: 'any',
      } as const;
      return { name: 'npm', destinations: [destination] } as unknown as PresetResolution;
    });
  }
}

function keeper(scratch: Scratch, presets = new Presets(), onLoad?: (directory: string | undefined) => void) {
  const systemDirectory = join(scratch.path, 'none');
  return new PolicyKeeper({
    ctHome: scratch.path,
    env: {},
    presets,
    systemDirectory,
    ...(onLoad ? { onLoad } : {}),
  });
}

test('a policy is loaded once, and again when another file counts', async () => {
  using scratch = scratchDirectory();
  const loads: (string | undefined)[] = [];
  const policy = keeper(scratch, new Presets(), (directory) => loads.push(directory));
  const shipped = await policy.current();
  assert.equal(await policy.current(), shipped);
  assert.equal(shipped.directory, undefined);
  assert.equal(shipped.mode, 'enforce');
  write(scratch.path, '{mode: terminate, allow: []}');
  const own = await policy.current();
  assert.equal(own.directory, join(scratch.path, 'policy'));
  assert.equal(own.mode, 'terminate');
  assert.notEqual(own.engine.revision, shipped.engine.revision);
  assert.deepEqual(loads, [undefined, own.directory]);
  rmSync(join(scratch.path, 'policy'), { recursive: true });
  assert.equal((await policy.current()).engine.revision, shipped.engine.revision);
});

test('many who ask at once load it once', async () => {
  using scratch = scratchDirectory();
  let loads = 0;
  const policy = keeper(scratch, new Presets(), () => {
    loads += 1;
  });
  const all = await Promise.all(Array.from({ length: 10 }, () => policy.current()));
  assert.equal(new Set(all).size, 1);
  assert.equal(loads, 1);
});

test('POLICY_INVALID stays until the file changes, and does not fall back to another policy', async () => {
  using scratch = scratchDirectory();
  const policy = keeper(scratch);
  await policy.current();
  write(scratch.path, '{mode: sometimes, allow: []}');
  for (let i = 0; i < 2; i++)
    await assert.rejects(policy.current(), { code: 'POLICY_INVALID', message: /data\.yml:2/ });
  write(scratch.path, '{mode: enforce, allow: [a.test]}');
  assert.equal((await policy.current()).mode, 'enforce');
});

test('a file that changes while the policy is loaded counts from the next look on', async () => {
  using scratch = scratchDirectory();
  write(scratch.path, '{mode: enforce, allow: []}');
  let edits = 0;
  const policy = keeper(scratch, new Presets(), () => {
    if (edits++ === 0) write(scratch.path, '{mode: terminate, allow: []}'); // it has been read
  });
  assert.equal((await policy.current()).mode, 'enforce');
  assert.equal((await policy.current()).mode, 'terminate');
  await policy.current();
  assert.equal(edits, 2, 'and then it stays');
});

test('a policy that lies behind a link counts as it is now, and so does another one that the link is moved to', async () => {
  using scratch = scratchDirectory();
  const at = (name: string): string => join(scratch.path, name);
  for (const name of ['one', 'two']) {
    mkdirSync(at(name));
    write(at(name), '{mode: enforce, allow: []}');
  }
  symlinkSync(at('one/policy'), at('policy'));
  const policy = keeper(scratch);
  assert.equal((await policy.current()).mode, 'enforce');
  write(at('one'), '{mode: terminate, allow: []}');
  assert.equal((await policy.current()).mode, 'terminate');
  rmSync(at('policy'));
  symlinkSync(at('two/policy'), at('policy'));
  assert.equal((await policy.current()).mode, 'enforce');
});

test('what is wrong with its companions is wrong with the policy, too', async () => {
  using scratch = scratchDirectory();
  let fails = true;
  const policy = keeper(scratch, new Presets(), () => {
    if (fails) throw new CtError('CONFIG_INVALID', 'alerts.yml:1');
  });
  await assert.rejects(policy.current(), { code: 'CONFIG_INVALID' });
  fails = false;
  write(scratch.path, '{mode: enforce, allow: []}');
  await policy.current();
});

test('a preset that every job gets is resolved as this host has it, and again when that changes', async () => {
  using scratch = scratchDirectory();
  write(scratch.path, '{mode: enforce, allow: [npm], always: [npm]}');
  const presets = new Presets();
  const policy = keeper(scratch, presets);
  const first = await policy.current();
  const given = async (): Promise<readonly string[]> => {
    const { engine } = await policy.current();
    const { decision } = await engine.decideAdmission({
      version: 1,
      run: { job: 'job', trust: 'local', actor: 'me' },
      image: { name: 'i', digest: 'd' },
      resources: { cpus: 1, memory_mib: 1, disk_mib: 1, timeout_seconds: 1 },
      secrets: [],
      network: { ask: [] },
    });
    return decision.network.allow.map(({ host }) => host);
  };
  assert.deepEqual(await given(), ['one.test']);
  assert.equal(await policy.current(), first);
  presets.host = 'two.test';
  assert.deepEqual(await given(), ['two.test']);
  presets.host = undefined;
  await assert.rejects(policy.current(), { code: 'PRESET_UNCONFIGURED' });
  write(scratch.path, '{mode: enforce, allow: [npm]}');
  assert.deepEqual(await given(), []);
  write(scratch.path, '{mode: enforce, allow: [npm], always: [npm]}');
  await assert.rejects(policy.current(), { code: 'PRESET_UNCONFIGURED' });
  presets.host = 'one.test';
  assert.deepEqual(await given(), ['one.test']);
});
