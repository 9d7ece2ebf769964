import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

const FIXTURE = join(import.meta.dirname, 'cli-output-fixture.ts');

function start(args: readonly string[], stdout: 'pipe' | number): ChildProcess {
  return spawn(process.execPath, [FIXTURE, ...args], { stdio: ['ignore', stdout, stdout] });
}

async function exitOf(child: ChildProcess): Promise<string> {
  const [code, signal] = await once(child, 'exit');
  return String(code ?? signal);
}

test('lines to stdout and stderr keep their order where both go to one file', async () => {
  const path = join(tmpdir(), `ct-output-${process.pid}`);
  const file = openSync(path, 'w');
  try {
    assert.equal(await exitOf(start(['200'], file)), '0');
    const lines = readFileSync(path, 'utf8').split('\n');
    assert.equal(lines.length, 201);
    assert.ok(lines.slice(0, 200).every((line) => line.length === 8191));
  } finally {
    closeSync(file);
    rmSync(path);
  }
});

test('SIGTERM cancels although nobody reads the output, and memory stays bounded', async () => {
  const child = start(['1000000', 'stay'], 'pipe');
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const status = readFileSync(`/proc/${child.pid}/status`, 'utf8');
  const residentMib = Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1024;
  assert.ok(residentMib < 200, `${residentMib} MiB resident`);
  child.kill('SIGTERM');
  // The first asks for cancellation, which the fixture answers by staying; the second ends it by the signal itself.
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.equal(child.exitCode, null);
  const ended = exitOf(child);
  child.kill('SIGTERM');
  assert.equal(await ended, 'SIGTERM');
});

test('a reader that leaves in the middle cancels', async () => {
  const child = start(['1000000'], 'pipe');
  child.stdout?.once('data', () => {
    child.stdout?.destroy();
    child.stderr?.destroy();
  });
  assert.equal(await exitOf(child), '130');
});
