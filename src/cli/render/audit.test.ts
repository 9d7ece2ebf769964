import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { Script } from 'node:vm';
import { makeBuild, npmCi, reverseShell, SyntheticRun } from '../../../test/support/audit-run.ts';
import { RunClock } from '../../audit/timeline/clock.ts';
import { namesInOrder } from '../../audit/timeline/destinations.ts';
import { diffReports } from '../../audit/timeline/diff.ts';
import { Query } from '../../audit/timeline/query.ts';
import { buildReport, MAX_NODES, type Report } from '../../audit/timeline/report.ts';
import { diffJson, diffText, matchLine, reportJson, reportText, type ShownRun } from './audit.ts';
import { escaped, reportHtml } from './audit-html.ts';
import { UNSTYLED } from './format.ts';

const nameOf = namesInOrder(['registry.example']);
const SHOWN: ShownRun = {
  run: 'r1',
  job: 'build',
  clockOffsetNs: 1_800_000_000_000_000_000n,
  steps: [{ name: 'make', startNs: 0n, endNs: 6_000_000_000n, outcome: 'success' }],
  refusals: [
    {
      id: 'd1',
      time: '2026-01-31T09:00:00Z',
      action: 'denied',
      count: 2,
      denial: { rule: 'ct.egress.not_allowed', message: 'no rule allows `evil.example`' },
    },
  ],
};

async function reportOf(act: (run: SyntheticRun) => void): Promise<Report> {
  const run = new SyntheticRun();
  act(run);
  return buildReport(run.stream(), { workspace: '/workspace', nameOf, steps: SHOWN.steps });
}

const build = (run: SyntheticRun): void => {
  makeBuild(run, ['a', 'b', 'c', 'd', 'e', 'f', 'g']);
  npmCi(run);
  const shell = run.step('x');
  shell.spawn('/usr/bin/false', ['false']).exit(1);
  shell.denied('exec', '/tmp/tool').exit();
};

test('a person sees steps, the tree, files, destinations and refusals', async () => {
  const text = reportText(SHOWN, await reportOf(build), UNSTYLED);
  for (const expected of [
    /^run r1, job build: [0-9]+ processes in /,
    /\n {2}1 make {2}6\.0 s {2}success\n/,
    /\n {2}step 1: make\n {2}\/bin\/sh -e -c 'make && make install' {2}[0-9]+ ms\n {2}├─ make {2}/,
    /\n {2}│ {2}├─ cc -O2 -c a\.c {2}/,
    /… 7 × x86_64-linux-gnu-gcc-12 in all\n/,
    /false {2}[0-9]+ ms {2}exit 1\n/,
    /\n {2}\/usr\/local\/bin\/app {2}by install \([0-9]+\)\n/,
    /\ndestinations\n {2}registry\.example:443 {2}×2 {2}by node/,
    /\nrefused in the VM\n {2}exec \/tmp\/tool/,
    /\nrefused by policy\n {2}denied no rule allows `evil\.example` {2}×2 {2}ct\.egress\.not_allowed\n/,
  ]) {
    assert.match(text, expected);
  }
});

test('the tree of a large run is short, and says what it leaves out', async () => {
  const report = await reportOf((run) => {
    const shell = run.step('x');
    for (let index = 0; index < 3000; index += 1) shell.spawn(`/bin/tool${index}`, [`tool${index}`]).exit();
  });
  const text = reportText(SHOWN, report, UNSTYLED);
  assert.ok(text.split('\n').length < 450);
  assert.match(text, /… and some 2[0-9]{3} more; --html and --json have all/);
});

test('the JSON document has all of it, in seconds, without a bigint', async () => {
  const document = JSON.parse(JSON.stringify(reportJson(SHOWN, await reportOf(build)))) as Record<
    string,
    never[]
  >;
  assert.equal(document['version'], 1 as never);
  const names = Object.keys(document);
  assert.deepEqual(names, [
    'version',
    'run',
    'job',
    'started',
    'duration',
    'steps',
    'processes',
    'programs',
    'written',
    'destinations',
    'refused',
    'policy',
    'omitted',
  ]);
  assert.deepEqual(document['destinations']?.[0], {
    host: 'registry.example',
    port: 443,
    protocol: 6,
    refused: 0,
    count: 2,
    process: (document['destinations']?.[0] as { process: number } | undefined)?.process,
    first: (document['destinations']?.[0] as { first: number } | undefined)?.first,
  });
});

const HOSTILE = [
  '<script>alert(1)</script>',
  '"><img src=x onerror=alert(1)>',
  "' onmouseover='alert(1)",
  '</title></style></script><svg onload=alert(1)>',
  '<!--',
  ']]>',
  '&lt;b&gt;',
  '\u202egnp.exe',
  '\x1b[2J\r\n\0',
  'javascript:alert(1)',
];

const hostileRun = (run: SyntheticRun): void => {
  for (const name of HOSTILE) {
    const process = run.step(name).spawn(`/tmp/${name}`, [name, name], { cwd: `/${name}` });
    process.file('write', `/etc/${name}`).denied('exec', `/tmp/${name}`);
    process.exec(`/tmp/2${name}`, [name]);
  }
};

const hostileShown: ShownRun = {
  ...SHOWN,
  job: HOSTILE.join(),
  steps: HOSTILE.map((name) => ({ name, startNs: 0n, endNs: 1n, outcome: name })),
  refusals: HOSTILE.map((message) => ({
    ...(SHOWN.refusals[0] as ShownRun['refusals'][number]),
    denial: { rule: message, message },
  })),
};

/** The tags of a page, as a browser would find them. */
function tagsOf(html: string): string[] {
  return [...html.matchAll(/<[!/a-zA-Z][^>]*>/g)].map(([tag]) => tag);
}

test('names that are markup stay text on the page: no tag, attribute or script is the guest’s', async () => {
  const html = reportHtml(hostileShown, await reportOf(hostileRun));
  const ours = reportHtml(SHOWN, await reportOf(build));
  const names = (page: string): Set<string> =>
    new Set(tagsOf(page).map((tag) => /^<\/?([!a-zA-Z0-9]+)/.exec(tag)?.[1] ?? tag));
  for (const name of names(html)) assert.ok(names(ours).has(name), `a tag ${name}`);
  for (const tag of tagsOf(html)) {
    const attributes = tag.replaceAll(/"[^"]*"/g, '');
    assert.doesNotMatch(attributes, /\son[a-z]+/i, tag);
    assert.doesNotMatch(attributes, /\s(src|href|style)=/i, tag);
    assert.doesNotMatch(attributes, /'/, tag);
  }
  assert.equal(html.match(/<script>/g)?.length, 1);
  assert.equal(html.match(/<\/script>/g)?.length, 1);
  assert.ok(html.includes('&lt;script&gt;alert(1)&lt;/script&gt;'), 'it is shown, as text');
  assert.doesNotMatch(html, /[^\P{Cc}\n\t]|\u202e/u);
});

test('the check of the page would find markup that was not escaped', () => {
  const tags = tagsOf(`<code>${HOSTILE.join('')}</code>`);
  assert.ok(tags.some((tag) => /onerror/.test(tag)) && tags.includes('<script>'));
  assert.deepEqual(tagsOf(escaped(HOSTILE.join(''))), []);
});

test('the page loads nothing, and its policy names its own script and style alone', async () => {
  const html = reportHtml(SHOWN, await reportOf(build));
  const [, policy = ''] = /http-equiv="Content-Security-Policy" content="([^"]*)"/.exec(html) ?? [];
  assert.match(
    policy,
    /^default-src 'none'; style-src 'sha256-[^']+'; script-src 'sha256-[^']+'; base-uri 'none'; form-action 'none'$/,
  );
  for (const name of ['style', 'script']) {
    const [, source = ''] = new RegExp(`<${name}>([^]*?)</${name}>`).exec(html) ?? [];
    const hash = createHash('sha256').update(source).digest('base64');
    assert.ok(policy.includes(`${name}-src 'sha256-${hash}'`), name);
  }
  assert.doesNotMatch(html, /https?:|url\(|@import|\ssrc=|\shref=/);
});

test('the script of the page can be read by an engine, and puts no markup together', async () => {
  const [, source = ''] = /<script>([\s\S]*?)<\/script>/.exec(reportHtml(SHOWN, await reportOf(build))) ?? [];
  assert.doesNotThrow(() => new Script(source));
  assert.throws(() => new Script(`${source}}`), SyntaxError);
  assert.doesNotMatch(source, /innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function/);
});

test('the tags of the page are closed in the order in which they were opened', async () => {
  const open: string[] = [];
  for (const tag of tagsOf(reportHtml(SHOWN, await reportOf(build)))) {
    const [, slash, name = '', end] = /^<(\/?)([!a-z0-9]+)[^>]*?(\/?)>$/.exec(tag) ?? [];
    if (end || ['!doctype', 'meta', 'input'].includes(name)) continue;
    if (slash) assert.equal(open.pop(), name);
    else open.push(name);
  }
  assert.deepEqual(open, []);
});

test('the page of the largest report is made in a moment, also if every process has one child', async () => {
  const report = await reportOf((run) => {
    let process = run.step('x');
    for (let index = 0; index < MAX_NODES; index += 1) process = process.spawn('/bin/sh', ['sh']);
  });
  const began = performance.now();
  const html = reportHtml(SHOWN, report);
  assert.ok(performance.now() - began < 5000);
  assert.ok(html.length < 20_000_000, `${html.length}`);
  const open = html.match(/<details/g)?.length ?? 0;
  assert.ok(open <= 61 && html.match(/<\/details>/g)?.length === open, `${open}`);
});

test('texts for terminals hold nothing that could drive one', async () => {
  const report = await reportOf(hostileRun);
  assert.doesNotMatch(reportText(hostileShown, report, UNSTYLED), /[^\P{Cc}\n]/u);
  const empty = await reportOf(() => {});
  assert.doesNotMatch(diffText(['a', 'b'], diffReports(empty, report), UNSTYLED), /[^\P{Cc}\n]/u);
});

test('a match is a line: when, who, what', () => {
  const run = new SyntheticRun();
  npmCi(run);
  run.step('x').call('openat', [1n, 2n], -2n);
  const lines = (terms: ConstructorParameters<typeof Query>[0]): string[] => {
    const query = new Query(terms, nameOf);
    return run.events().flatMap((event) => {
      const match = query.match(event);
      return match ? [matchLine(match, new RunClock(0n), nameOf, UNSTYLED)] : [];
    });
  };
  assert.match(
    lines({ destination: 'registry.example' })[0] ?? '',
    /^1970-01-01T00:00:05\.[0-9]{9}Z \/usr\/bin\/node \([0-9]+\) connects to registry\.example:443 = -115\n$/,
  );
  assert.match(
    lines({ syscall: 'openat' })[0] ?? '',
    / \/bin\/sh \([0-9]+\) openat\(0x1, 0x2, 0x0, 0x0, 0x0\) = -2\n$/,
  );
});

test('differences are told with + and -, and none as such', async () => {
  const [before, after] = [
    await reportOf(makeBuild),
    await reportOf((run) => {
      makeBuild(run);
      reverseShell(run);
    }),
  ];
  const text = diffText(['r1', 'r2'], diffReports(before, after), UNSTYLED);
  assert.match(
    text,
    /^run r2 against run r1\n\nprograms\n {2}\+ \/usr\/bin\/python3\n\ndestinations\n {2}\+ 198\.18\.1\.9:4444\n$/,
  );
  assert.match(
    diffText(['r1', 'r2'], diffReports(before, before), UNSTYLED),
    /they ran, reached and wrote the same/,
  );
  assert.deepEqual(Object.keys(diffJson(['r1', 'r2'], diffReports(before, after))), [
    'version',
    'earlier',
    'later',
    'programs',
    'destinations',
    'written',
    'refused',
    'incomplete',
  ]);
});
