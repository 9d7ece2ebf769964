import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { CtError } from './errors.ts';
import { formatProblems, printable, problemsError, readSource, SourceText } from './source-text.ts';

const directory = mkdtempSync(join(tmpdir(), 'ct-source-'));
after(() => rmSync(directory, { recursive: true }));

function readError(content: string | Buffer, maxBytes = 1000): CtError {
  const path = join(directory, 'a.yml');
  writeFileSync(path, content);
  try {
    readSource(path, 'a.yml', { maxBytes, code: 'JOB_FILE_INVALID', missingCode: 'JOB_FILE_NOT_FOUND' });
  } catch (error) {
    assert.ok(error instanceof CtError);
    return error;
  }
  assert.fail('it was read');
}

test('a file of exactly the limit is read, one byte more is refused', () => {
  const path = join(directory, 'limit.yml');
  const options = { maxBytes: 10, code: 'JOB_FILE_INVALID', missingCode: 'JOB_FILE_NOT_FOUND' } as const;
  writeFileSync(path, 'a: 1234567');
  assert.equal(readSource(path, 'a.yml', options).text, 'a: 1234567');
  assert.match(readError('a: 12345678', 10).message, /larger than 10 bytes/);
});

test('a huge sparse file is refused without being read', () => {
  const path = join(directory, 'huge.yml');
  writeFileSync(path, '');
  truncateSync(path, 100 * 2 ** 30);
  const startedAt = performance.now();
  assert.throws(
    () =>
      readSource(path, 'huge.yml', {
        maxBytes: 1e6,
        code: 'JOB_FILE_INVALID',
        missingCode: 'JOB_FILE_NOT_FOUND',
      }),
    { code: 'JOB_FILE_INVALID' },
  );
  assert.ok(performance.now() - startedAt < 1000);
});

test('a missing file has a code of its own, a directory and a device are no files', () => {
  const options = { maxBytes: 10, code: 'JOB_FILE_INVALID', missingCode: 'JOB_FILE_NOT_FOUND' } as const;
  assert.throws(() => readSource(join(directory, 'none'), 'none', options), { code: 'JOB_FILE_NOT_FOUND' });
  assert.throws(() => readSource(directory, 'dir', options), { code: 'JOB_FILE_INVALID' });
  assert.throws(() => readSource('/dev/zero', 'zero', options), {
    code: 'JOB_FILE_INVALID',
    message: /not a regular file/,
  });
});

test('binary, UTF-16 and Latin-1 files are refused with the reason', () => {
  assert.match(readError(Buffer.from('a: \0b')).message, /binary: it has a NUL byte at offset 3/);
  assert.match(readError(Buffer.from('\ufeffa: 1', 'utf16le')).message, /UTF-16/);
  assert.match(readError(Buffer.from([0x61, 0x3a, 0x20, 0xe4])).message, /not UTF-8/);
});

test('a report shows position, rule, line, caret and hint', () => {
  const source = new SourceText('a.yml', 'one: 1\n\ttwo: three\n');
  const report = formatProblems([
    { code: 'JOB_FILE_INVALID', span: { source, start: 13, end: 18 }, message: 'wrong', hint: 'write 3' },
  ]);
  assert.equal(report, 'a.yml:2:7: wrong\n  2 |  two: three\n    |       ^^^^^\n    = write 3');
});

test('a report shows at most twenty problems, in file order, and a window of a long line', () => {
  const source = new SourceText('a.yml', `${'x'.repeat(5000)}\n`);
  const problems = Array.from({ length: 50 }, (_, index) => ({
    code: 'JOB_FILE_INVALID' as const,
    span: { source, start: 4000 - index, end: 4001 - index },
    message: `p${index}`,
  }));
  const report = formatProblems(problems);
  assert.match(report, /^a\.yml:1:3952: p49\n/);
  assert.equal(report.match(/: p\d+\n/g)?.length, 20);
  assert.match(report, /and more problems$/);
  assert.ok(Math.max(...report.split('\n').map((line) => line.length)) < 120);
});

test('escape sequences and direction marks of a file do not reach the terminal', () => {
  assert.equal(printable('a\u001b[31m\u202eb\tc\u0085'), 'a?[31m?b c?');
  const source = new SourceText('a.yml', 'k\u202e: 1');
  const span = { source, start: 0, end: 2 };
  assert.doesNotMatch(formatProblems([{ code: 'JOB_FILE_INVALID', span, message: 'k\u202e' }]), /\u202e/);
});

test('the code of an error is that of its problems if they agree', () => {
  const source = new SourceText('a.yml', 'a');
  const span = { source, start: 0, end: 1 };
  const one = { code: 'NOT_SUPPORTED_YET', span, message: 'x' } as const;
  const other = { code: 'JOB_EXPRESSION_INVALID', span, message: 'x' } as const;
  assert.equal(problemsError([one, one], 'JOB_FILE_INVALID').code, 'NOT_SUPPORTED_YET');
  assert.equal(problemsError([one, other], 'JOB_FILE_INVALID').code, 'JOB_FILE_INVALID');
});
