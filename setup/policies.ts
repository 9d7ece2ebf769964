/**
 * Compiles the shipped policy: policies/ct/*.rego into policies/policy.wasm, and what it was made of into
 * policies/policy.json. Run it after a change of the rules: `node_modules/.bin/node setup/policies.ts`. A test compares them.
 */
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { installRoot } from '../src/core/install.ts';
import { ctHomePath, openCtHome } from '../src/core/paths.ts';
import {
  compileTo,
  findOpa,
  OPA_VERSION,
  opaVersion,
  regoSources,
  sourceDigest,
} from '../src/host/policy-compiler.ts';
import { ENTRYPOINTS } from '../src/policy/input.ts';

const policies = join(installRoot, 'policies');
const rules = join(policies, 'ct');
const opa = await findOpa({
  ctHome: openCtHome(ctHomePath()),
  progress: (message) => console.error(message),
});
const version = await opaVersion(opa);
if (version !== OPA_VERSION) {
  console.error(`${opa} is version ${version}; the shipped policy is compiled with ${OPA_VERSION}`);
  process.exit(1);
}
const work = mkdtempSync(join(tmpdir(), 'ct-policies-'));
try {
  const wasm = await compileTo(work, opa, [{ directory: rules, files: regoSources(rules) }]);
  const made = {
    source: sourceDigest(regoSources(rules)),
    wasm: createHash('sha256').update(wasm).digest('hex'),
    opa: OPA_VERSION,
    entrypoints: ENTRYPOINTS,
  };
  writeFileSync(join(policies, 'policy.wasm'), wasm);
  writeFileSync(join(policies, 'policy.json'), `${JSON.stringify(made, null, 2)}\n`);
  console.error(`policies/policy.wasm: ${wasm.length} bytes`);
} finally {
  rmSync(work, { recursive: true, force: true });
}
