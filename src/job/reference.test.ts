// biome-ignore-all lint/suspicious/noTemplateCurlyInString: expressions of the job file, not of this language
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Ajv } from 'ajv';
import { parse } from 'yaml';
import { SourceText } from '../core/source-text.ts';
import { PRESET_NAMES } from '../egress/presets/names.ts';
import { loadSources } from './load.ts';
import { planJobs } from './plan.ts';
import { jobFileJsonSchema, referenceTable, withReferenceTable } from './reference.ts';

const docs = new URL('../../docs/', import.meta.url);
const page = readFileSync(new URL('job-file.md', docs), 'utf8');
const committed = readFileSync(new URL('ct.schema.json', docs), 'utf8');
const validate = new Ajv({ strict: true, allowUnionTypes: true, strictRequired: false }).compile(
  JSON.parse(committed),
);

const examples = [page, readFileSync(new URL('network.md', docs), 'utf8')].flatMap((text) =>
  [...text.matchAll(/^```yaml ct\n([\s\S]*?)^```$/gm)].map((match) => match[1] as string),
);

function parser(text: string): 'valid' | 'invalid' {
  try {
    loadSources('/p', [new SourceText('ct.yml', text)]);
    return 'valid';
  } catch {
    return 'invalid';
  }
}

function schema(text: string): 'valid' | 'invalid' {
  return validate(parse(text, { merge: true })) ? 'valid' : 'invalid';
}

/** A job file whose one job has `body` in flow style. */
function job(body: string): string {
  return `version: 1\njobs: {a: {steps: [{run: x}], ${body}}}\n`;
}

test('docs/ct.schema.json and the table of docs/job-file.md are those of the definition', () => {
  const command = 'run `node src/job/write-reference.ts`';
  assert.equal(committed, jobFileJsonSchema(), command);
  assert.equal(page, withReferenceTable(page), command);
  assert.ok(referenceTable().includes('| `jobs.<id>.steps[].run` | string (e) | **required** |'));
});

test('docs/network.md has every preset', () => {
  const text = readFileSync(new URL('network.md', docs), 'utf8');
  for (const name of PRESET_NAMES) assert.ok(text.includes(`| \`${name}\` |`), name);
});

test('every example of docs/job-file.md and docs/network.md parses, plans and validates', () => {
  assert.ok(examples.length >= 6);
  for (const example of examples) {
    planJobs(loadSources('/p', [new SourceText('example', example)]), { targets: [] });
    assert.equal(schema(example), 'valid', example);
  }
});

const VALID = [
  'image: "debian-${{ env.V }}", env: {V: 12}',
  'resources: {cpu: 2, memory: 1GiB, disk: 20G, gpu: 1}',
  'resources: {memory: "${{ env.M }}"}',
  'env: {A: 1, B: true, C: "", CT_HOME: x}',
  'needs: a',
  'needs: [a]',
  'matrix: {node: [18, "20", true], include: [{node: 1, x: y}], exclude: [{node: 18}]}',
  'timeout: 1h30m',
  'secrets: [TOKEN]',
  'secrets: {TOKEN: env, KEY: file, OTHER: {env: NAME}}',
  'network: none',
  'network: {allow: ["*.example.org", "https://example.org:8443"]}',
  'network: [npm, example.org]',
  'network: {mode: audit}',
  'network: {allow: [npm, "ssh://git.example.org", "tcp://[2001:db8::7]:5432"], mode: enforce}',
  'cache: [{key: k, paths: [p]}]',
  'artifacts: {paths: [dist/**, "!x"], expire: 7d}',
  'permissions: none',
  'permissions: {id-token: write}',
  'services: {db: {image: x, env: {A: 1}, ports: [5432], command: y}}',
];

const INVALID = [
  'imagee: x',
  'image: [x]',
  'resources: {cpu: "2"}',
  'resources: {cpu: 0}',
  'resources: {memory: 2048}',
  'resources: {memory: 2GB}',
  'env: {A: null}',
  'env: {A: [1]}',
  'env: {"1": x}',
  'env: {CT_RUN: x}',
  'env: {CT: x}',
  'needs: {a: b}',
  'needs: ["a b"]',
  'matrix: {}',
  'matrix: {node: 18}',
  'matrix: {node: []}',
  'matrix: {node: [[1]]}',
  'matrix: {include: [1]}',
  'timeout: 30',
  'timeout: 1w',
  'secrets: TOKEN',
  'secrets: [1A]',
  'secrets: [CT_TOKEN]',
  'secrets: {TOKEN: value}',
  'secrets: {TOKEN: {file: x}}',
  'secrets: {TOKEN: {}}',
  'network: all',
  'network: npm',
  'network: {allow: ["a b"]}',
  'network: {allow: ["https://example.org/path"]}',
  'network: {allow: [npm], mode: off}',
  'network: {hosts: [npm]}',
  'artifacts: [dist]',
  'artifacts: {paths: []}',
  'artifacts: {expire: 7d}',
  'permissions: {id-token: maybe}',
  'services: {Db: {image: x}}',
  'services: {db: {}}',
];

for (const body of VALID) {
  test(`parser and schema take ${body}`, () => {
    assert.equal(parser(job(body)), 'valid');
    assert.equal(schema(job(body)), 'valid');
  });
}

for (const body of INVALID) {
  test(`parser and schema refuse ${body}`, () => {
    assert.equal(parser(job(body)), 'invalid');
    assert.equal(schema(job(body)), 'invalid');
  });
}

test('parser and schema agree about the frame of a file', () => {
  const steps = 'steps: [{run: x}]';
  const texts: [string, 'valid' | 'invalid'][] = [
    [`version: 1\njobs: {a: {${steps}}}`, 'valid'],
    [`version: 1\nx-any: {thing: 1}\njobs: {a: {${steps}}}`, 'valid'],
    [`version: 1\ndefaults: {shell: sh, working-directory: d}\njobs: {a: {${steps}}}`, 'valid'],
    [`version: 1\njobs: {a: {steps: [{run: true, shell: "perl {0}", if: always(), timeout: 5s}]}}`, 'valid'],
    ['version: 1\njobs: {a: {steps: [{run: x, secrets: [A]}, {run: x, secrets: {A: file}}]}}', 'valid'],
    [`version: 1\nnetwork: [npm]\njobs: {a: {steps: [{run: x, network: none}]}}`, 'valid'],
    [`version: 1\njobs: {a: {steps: [{run: x, network: [npm]}]}}`, 'invalid'],
    [`jobs: {a: {${steps}}}`, 'invalid'],
    [`version: 2\njobs: {a: {${steps}}}`, 'invalid'],
    [`version: "1"\njobs: {a: {${steps}}}`, 'invalid'],
    ['version: 1', 'invalid'],
    ['version: 1\njobs: {}', 'invalid'],
    ['version: 1\njobs: {a: {}}', 'invalid'],
    ['version: 1\njobs: {a: {steps: []}}', 'invalid'],
    ['version: 1\njobs: {a: {steps: [make]}}', 'invalid'],
    ['version: 1\njobs: {a: {steps: [{name: x}]}}', 'invalid'],
    ['version: 1\njobs: {a: {steps: [{run: ""}]}}', 'invalid'],
    ['version: 1\njobs: {a: {steps: [{run: x, shell: zsh}]}}', 'invalid'],
    ['version: 1\njobs: {a: {steps: [{run: x, if: failed()}]}}', 'invalid'],
    [`version: 1\njobs: {1a: {${steps}}}`, 'invalid'],
    [`version: 1\ndefaults: {steps: []}\njobs: {a: {${steps}}}`, 'invalid'],
    ['[]', 'invalid'],
  ];
  for (const [text, expected] of texts) {
    assert.equal(parser(text), expected, `parser: ${text}`);
    assert.equal(schema(text), expected, `schema: ${text}`);
  }
});
