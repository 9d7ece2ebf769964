/** One home per fact: the C side of the guest link has the same numbers and strings as the TypeScript side. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import * as guestLink from '../../src/protocol/guest-link.ts';
import {
  MAX_INTERPRETER_BYTES,
  MAX_INTERPRETER_NAME_BYTES,
  MAX_INTERPRETER_NAMES,
  MAX_INTERPRETERS,
  MAX_PATH_BYTES,
  MAX_RECORD_BYTES,
  MAX_SCRIPT_BYTES,
  MAX_SECRET_NAME_BYTES,
  MAX_SIGNED_DIGESTS,
} from '../../src/protocol/limits.ts';
import { RECORD_HEADER_BYTES } from '../../src/protocol/records.ts';

function cDefines(): Map<string, number | string> {
  const text = readFileSync(new URL('../../guest-agent/protocol.h', import.meta.url), 'utf8');
  const defines = new Map<string, number | string>();
  for (const [, name, value] of text.matchAll(/^#define (CT_\w+) (.+)$/gm)) {
    assert.ok(name && value);
    const product = /^\((\d+) \* (\d+)\)$/.exec(value);
    if (value.startsWith('"')) defines.set(name, JSON.parse(value) as string);
    else defines.set(name, product ? Number(product[1]) * Number(product[2]) : Number(value));
  }
  return defines;
}

function snake(name: string): string {
  return name
    .replaceAll(/[A-Z]/g, (letter) => `_${letter}`)
    .replace(/^_/, '')
    .toUpperCase();
}

/** `ExecInput.scriptName` is CT_EXEC_INPUT_SCRIPT_NAME. */
function tsDefines(): Map<string, number | string> {
  const defines = new Map<string, number | string>();
  for (const [name, value] of Object.entries(guestLink)) {
    if (typeof value !== 'object') {
      defines.set(`CT_${name}`, value);
      continue;
    }
    for (const [member, number] of Object.entries(value)) {
      defines.set(`CT_${snake(name)}_${snake(member)}`, number);
    }
  }
  defines.set('CT_RECORD_HEADER_BYTES', RECORD_HEADER_BYTES);
  defines.set('CT_MAX_RECORD_BYTES', MAX_RECORD_BYTES);
  defines.set('CT_MAX_SCRIPT_BYTES', MAX_SCRIPT_BYTES);
  defines.set('CT_MAX_SECRET_NAME_BYTES', MAX_SECRET_NAME_BYTES);
  defines.set('CT_MAX_PATH_BYTES', MAX_PATH_BYTES);
  defines.set('CT_MAX_SIGNED_DIGESTS', MAX_SIGNED_DIGESTS);
  defines.set('CT_MAX_INTERPRETERS', MAX_INTERPRETERS);
  defines.set('CT_MAX_INTERPRETER_BYTES', MAX_INTERPRETER_BYTES);
  defines.set('CT_MAX_INTERPRETER_NAMES', MAX_INTERPRETER_NAMES);
  defines.set('CT_MAX_INTERPRETER_NAME_BYTES', MAX_INTERPRETER_NAME_BYTES);
  return defines;
}

test('guest-agent/protocol.h and src/protocol/guest-link.ts say the same', () => {
  const c = cDefines();
  /** Only docs/guest-link.md and the C side know the tree stream's framing. */
  for (const name of ['CT_TREE_MAGIC', 'CT_TREE_HEADER_BYTES']) c.delete(name);
  assert.deepEqual(Object.fromEntries([...c].sort()), Object.fromEntries([...tsDefines()].sort()));
});
