/** npm packages of images, fetched by the real npm from a registry on loopback. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fetchNpmPackages } from '../../src/image/npm.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

let scratch: Scratch;
let archive: Buffer;
let requests = 0;
/** The registry: one package, `tool`, whose scripts would leave a file. */
const registry = createServer((request, response) => {
  requests++;
  if (request.url === '/tool.tgz') return void response.end(archive);
  if (request.url !== '/tool') return void response.writeHead(404).end('{}');
  const integrity = `sha512-${createHash('sha512').update(archive).digest('base64')}`;
  const tarball = `http://${request.headers.host}/tool.tgz`;
  const version = { name: 'tool', version: '1.0.0', dist: { tarball, integrity } };
  response.setHeader('content-type', 'application/json');
  response.end(
    JSON.stringify({ name: 'tool', 'dist-tags': { latest: '1.0.0' }, versions: { '1.0.0': version } }),
  );
});

before(async () => {
  scratch = scratchDirectory();
  mkdirSync(join(scratch.path, 'package'));
  const leave = `touch ${join(scratch.path, 'script-ran')}`;
  const scripts = { install: leave, prepack: leave, prepare: leave, postinstall: leave };
  const manifest = { name: 'tool', version: '1.0.0', bin: 'run.js', scripts };
  writeFileSync(join(scratch.path, 'package/package.json'), JSON.stringify(manifest));
  writeFileSync(join(scratch.path, 'package/run.js'), '#!/usr/bin/env node\n');
  execFileSync('tar', ['-czf', 'tool.tgz', 'package'], { cwd: scratch.path });
  archive = readFileSync(join(scratch.path, 'tool.tgz'));
  registry.listen(0, '127.0.0.1');
  await once(registry, 'listening');
  process.env['npm_config_registry'] = `http://127.0.0.1:${(registry.address() as AddressInfo).port}`;
  process.env['npm_config_cache'] = join(scratch.path, 'npm-cache');
});
after(() => {
  registry.closeAllConnections();
  registry.close();
  scratch[Symbol.dispose]();
});

function fetchTool(name: string, integrity: string) {
  const workDirectory = join(scratch.path, name);
  mkdirSync(workDirectory);
  return fetchNpmPackages([{ name: 'tool', version: '1.0.0', integrity }], {
    cacheDirectory: join(scratch.path, 'cache'),
    workDirectory,
    signal: undefined,
    progress: () => {},
  });
}

test('a package with another digest than the definition pins is IMAGE_BUILD_FAILED, and is not kept', async () => {
  await assert.rejects(fetchTool('other', `sha512-${'A'.repeat(86)}==`), {
    code: 'IMAGE_BUILD_FAILED',
    message: /tool@1\.0\.0 has not the digest that the definition pins/,
  });
});

test('a package comes from the registry that npm is configured with, runs no script, and is fetched once', async () => {
  const integrity = `sha512-${createHash('sha512').update(archive).digest('base64')}`;
  const [first] = await fetchTool('first', integrity);
  assert.deepEqual(readFileSync(first?.path ?? ''), archive);
  assert.deepEqual([...(first?.programs ?? [])], [['tool', 'run.js']]);
  assert.throws(() => readFileSync(join(scratch.path, 'script-ran')), { code: 'ENOENT' });

  const before = requests;
  await fetchTool('second', integrity);
  assert.equal(requests, before);
  writeFileSync(first?.path ?? '', 'damaged');
  const [third] = await fetchTool('third', integrity);
  assert.deepEqual(readFileSync(third?.path ?? ''), archive);
});

test('a package that the registry has not is IMAGE_BUILD_FAILED with what npm says', async () => {
  const workDirectory = join(scratch.path, 'absent');
  mkdirSync(workDirectory);
  const wanted = { name: 'absent', version: '1.0.0', integrity: `sha512-${'A'.repeat(86)}==` };
  const options = {
    cacheDirectory: join(scratch.path, 'cache'),
    workDirectory,
    signal: undefined,
    progress: () => {},
  };
  await assert.rejects(fetchNpmPackages([wanted], options), {
    code: 'IMAGE_BUILD_FAILED',
    message: /npm could not fetch absent@1\.0\.0:[\s\S]*404/,
  });
});
