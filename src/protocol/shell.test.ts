import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isTerminalName, parseShellRequest } from './shell.ts';

test('a request for a shell has arguments, and a terminal if it wants one', () => {
  assert.deepEqual(parseShellRequest('{"argv":[]}'), { argv: [] });
  const request = { argv: ['ls', '-l', ''], terminal: { rows: 0, columns: 65_535, name: 'xterm-256color' } };
  assert.deepEqual(parseShellRequest(JSON.stringify({ ...request, more: 1 })), request);
});

test('what is no request is HOST_PROTOCOL', () => {
  const terminal = { rows: 24, columns: 80, name: 'xterm' };
  const wrong = [
    null,
    [],
    {},
    { argv: 'ls' },
    { argv: [1] },
    { argv: ['a\0b'] },
    { argv: [], terminal: null },
    { argv: [], terminal: [] },
    { argv: [], terminal: { ...terminal, rows: 65_536 } },
    { argv: [], terminal: { ...terminal, columns: -1 } },
    { argv: [], terminal: { ...terminal, rows: 1.5 } },
    { argv: [], terminal: { ...terminal, name: '' } },
    { argv: [], terminal: { ...terminal, name: '../../etc/passwd' } },
  ].map((request) => JSON.stringify(request));
  for (const json of [...wrong, '', '{']) {
    assert.throws(() => parseShellRequest(json), { code: 'HOST_PROTOCOL' }, json);
  }
  assert.ok(isTerminalName('screen.xterm-256color') && !isTerminalName('x\ny') && !isTerminalName('.x'));
});
