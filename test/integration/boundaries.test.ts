import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';

/** From the outside in: a room may import its own layer and those below it. */
const LAYERS: readonly { readonly rooms: readonly string[]; readonly about: string }[] = [
  { rooms: ['cli', 'host', 'server'], about: 'programs' },
  {
    rooms: [
      'job',
      'vmm',
      'guest',
      'egress',
      'policy',
      'image',
      'signing',
      'verification',
      'identity',
      'audit',
      'cache',
    ],
    about: 'the domain',
  },
  { rooms: ['protocol'], about: 'wire types' },
  { rooms: ['core'], about: 'the foundation' },
];

/** The doors between the programs: the daemon's client, the benchmarks, and the policy, which `ct policy test` tests. */
const HOST_DOORS = [
  'host/client.ts',
  'host/bench-start.ts',
  'host/bench-jobs.ts',
  'host/bench-egress.ts',
  'host/bench-audit.ts',
  'host/bench-workload.ts',
  'host/policy-compiler.ts',
  'host/policy-source.ts',
];

/** Rooms whose answers must follow from their arguments alone, so that they can be tested and trusted. */
const PURE_ROOMS = ['verification', 'policy'];
const IMPURE_MODULES = new Set(
  'fs fs/promises net tls http http2 https dgram dns dns/promises child_process worker_threads cluster timers timers/promises perf_hooks sqlite'.split(
    ' ',
  ),
);
const CLOCKS =
  /\bDate\.now\(|\bnew Date\(\)|\bperformance\.|\bset(?:Timeout|Interval|Immediate)\(|\bprocess\.hrtime/;

function withoutComments(source: string): string {
  return source.replaceAll(/\/\*[\s\S]*?\*\//g, '').replaceAll(/^\s*\/\/.*$/gm, '');
}

function importsOf(source: string): string[] {
  const code = withoutComments(source);
  const statements = /^\s*(?:import|export)\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]/gm;
  const bare = /^\s*import\s*['"]([^'"]+)['"]/gm;
  const dynamic = /\bimport\(\s*['"]([^'"]+)['"]/g;
  return [statements, bare, dynamic].flatMap((pattern) =>
    [...code.matchAll(pattern)].map((match) => String(match[1])),
  );
}

/** Every import that crosses a boundary, as `file imports what: reason`. Paths are relative to src/. */
function violations(sources: ReadonlyMap<string, string>): string[] {
  const found: string[] = [];
  for (const [file, source] of sources) {
    const room = roomOf(file);
    const layer = layerOf(room);
    if (layer === -1) {
      found.push(`${file}: \`${room}\` is no room of the house; put it where its domain word leads`);
      continue;
    }
    const isTest = file.endsWith('.test.ts');
    for (const specifier of importsOf(source)) {
      const reason = specifier.startsWith('.')
        ? crossing(file, join(dirname(file), specifier))
        : isTest
          ? undefined
          : impurity(room, specifier);
      if (reason !== undefined) found.push(`${file} imports ${specifier}: ${reason}`);
    }
    const clock = PURE_ROOMS.includes(room) && !isTest ? CLOCKS.exec(withoutComments(source)) : null;
    if (clock) found.push(`${file} uses ${clock[0]}: \`${room}\` has no clock; time is an argument`);
  }
  return found;
}

function crossing(from: string, to: string): string | undefined {
  const [room, target] = [roomOf(from), roomOf(to)];
  if (to.startsWith('..')) {
    return from.endsWith('.test.ts') || to === '../package.json' ? undefined : 'it lies outside src/';
  }
  const [own, theirs] = [layerOf(room), layerOf(target)];
  if (theirs === -1) return `\`${target}\` is no room of the house`;
  if (theirs < own) {
    return `${LAYERS[own]?.about} (\`${room}\`) must not know ${LAYERS[theirs]?.about} (\`${target}\`)`;
  }
  if (theirs === 0 && room !== target && !HOST_DOORS.includes(to)) {
    return `programs do not reach into each other; the only doors are ${HOST_DOORS.join(' and ')}`;
  }
  return undefined;
}

function impurity(room: string, specifier: string): string | undefined {
  if (!IMPURE_MODULES.has(specifier.replace(/^node:/, ''))) return undefined;
  if (PURE_ROOMS.includes(room)) {
    return `\`${room}\` has no network, file system or clock; pass what it needs as arguments`;
  }
  return room === 'protocol' ? 'the protocol is types and parsers, without I/O' : undefined;
}

const roomOf = (file: string): string => file.split('/')[0] ?? '';
const layerOf = (room: string): number => LAYERS.findIndex(({ rooms }) => rooms.includes(room));

test('imports go from programs to the domain to the protocol to the core, and never back', () => {
  const root = join(installRoot, 'src');
  const files = globSync('**/*.ts', { cwd: root });
  assert.ok(files.length > 10, `only ${files.length} sources found below ${root}`);
  const sources = new Map(files.map((file) => [file, readFileSync(join(root, file), 'utf8')]));
  assert.deepEqual(violations(sources), []);
});

test('the check names the file, the import and the reason', () => {
  const check = (file: string, source: string): string[] => violations(new Map([[file, source]]));
  const violating: [string, string, RegExp][] = [
    [
      'core/a.ts',
      "import { x } from '../vmm/b.ts';",
      /^core\/a\.ts imports \.\.\/vmm\/b\.ts: the foundation/,
    ],
    ['job/a.ts', "import type {\n  X,\n} from '../cli/b.ts';", /the domain \(`job`\) must not know programs/],
    ['job/a.ts', "const x = await import('../host/client.ts');", /must not know programs/],
    ['cli/a.ts', "import { x } from '../host/daemon.ts';", /the only doors are host\/client\.ts/],
    ['cli/a.ts', "export * from '../server/http.ts';", /the only doors/],
    ['utils/a.ts', '', /no room of the house/],
    ['vmm/a.ts', "import '../utils/b.ts';", /no room of the house/],
    ['policy/a.ts', "import { readFileSync } from 'fs';", /no network, file system or clock/],
    ['verification/a.ts', "import { request } from 'node:https';", /no network, file system or clock/],
    ['policy/a.ts', 'const now = Date.now();', /time is an argument/],
    ['protocol/a.ts', "import net from 'node:net';", /without I\/O/],
    ['vmm/a.ts', "import { x } from '../../test/fixtures/x.ts';", /outside src/],
  ];
  for (const [file, source, expected] of violating) {
    const found = check(file, source);
    assert.equal(found.length, 1, `${file}: ${source}`);
    assert.match(found[0] ?? '', expected);
  }
  const fine: [string, string][] = [
    ['cli/commands/a.ts', "import { connectHost } from '../../host/client.ts';"],
    ['host/a.ts', "import { x } from '../vmm/b.ts';\nimport { y } from '../core/c.ts';"],
    ['image/a.ts', "// import { x } from '../cli/b.ts';\nimport { y } from '../job/b.ts';"],
    ['verification/a.test.ts', "import { readFileSync } from 'node:fs';"],
    ['policy/a.ts', "import { createHash } from 'node:crypto';"],
  ];
  for (const [file, source] of fine) assert.deepEqual(check(file, source), []);
});
