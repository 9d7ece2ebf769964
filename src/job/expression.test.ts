// biome-ignore-all lint/suspicious/noTemplateCurlyInString: expressions of the job file, not of this language
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatPosition, type Problem, SourceText } from '../core/source-text.ts';
import { evaluate, parseTemplate, type Scope } from './expression.ts';

const scope: Scope = {
  matrix: { node: '20', 'os-name': 'debian' },
  absentMatrix: new Set(['extra']),
  env: { HOME_DIR: '/x', EVIL: '${{ matrix.node }}' },
};

function run(text: string, maxBytes = 1000): string | string[] {
  const source = new SourceText('ct.yml', text);
  const problems: Problem[] = [];
  const report = (problem: Problem): void => void problems.push(problem);
  const template = parseTemplate(text, { source, start: 0, end: text.length }, report);
  const value = problems.length > 0 ? undefined : evaluate(template, scope, maxBytes, report);
  return value ?? problems.map((problem) => `${formatPosition(problem.span)} ${problem.message}`);
}

test('matrix and env values are inserted, spaces in the braces do not matter', () => {
  assert.equal(
    run('node:${{ matrix.node }}-${{matrix.os-name}} ${{  env . HOME_DIR  }}'),
    'node:20-debian /x',
  );
});

test('an inserted value is not looked at again', () => {
  assert.equal(run('${{ env.EVIL }}'), '${{ matrix.node }}');
});

test('a dollar before an expression makes it literal', () => {
  assert.equal(run('$${{ matrix.node }} $${{ ${{ matrix.node }}'), '${{ matrix.node }} ${{ 20');
  assert.equal(run('$ $$ ${HOME} $HOME {{ x }}'), '$ $$ ${HOME} $HOME {{ x }}');
});

test('a name that only some include gives is empty where it is absent', () => {
  assert.equal(run('[${{ matrix.extra }}]'), '[]');
});

test('unknown names are problems at their position that list what there is', () => {
  assert.deepEqual(run('a\n ${{ matrix.nod }} ${{ env.X }}'), [
    'ct.yml:2:2 unknown name `matrix.nod`; the matrix of this job has `node`, `os-name`, `extra`',
    'ct.yml:2:20 unknown name `env.X`; env here (defaults, job, step and -e; not the variables of the image) has `HOME_DIR`, `EVIL`',
  ]);
  assert.match(run('${{ env.constructor }}')[0] ?? '', /unknown name/);
});

test('malformed expressions are problems at their position', () => {
  assert.match(run('ab ${{ matrix.node')[0] ?? '', /^ct\.yml:1:4 the expression is not closed/);
  assert.match(run('${{ secrets.X }}')[0] ?? '', /unknown name `secrets`/);
  for (const text of [
    '${{ }}',
    '${{ matrix }}',
    "${{ matrix.x == '1' }}",
    '${{ matrix.a.b }}',
    '${{ always() }}',
  ]) {
    assert.match(run(text)[0] ?? '', /an expression is/, text);
  }
});

test('a result longer than the limit is a problem and is never built', () => {
  assert.match(run('${{ env.HOME_DIR }}'.repeat(100), 150)[0] ?? '', /longer than 150 bytes/);
});
