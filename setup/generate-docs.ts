/**
 * Writes the documents that are made from code: docs/errors.md and docs/cli.md. Run it after a change of error codes
 * or commands: `node_modules/.bin/node setup/generate-docs.ts`. A test compares them.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { COMMANDS } from '../src/cli/commands.ts';
import { cliReference } from '../src/cli/help.ts';
import { ERROR_CODES, type ErrorKind, EXIT_STATUS } from '../src/core/errors.ts';
import { installRoot } from '../src/core/install.ts';

const KINDS: Readonly<Record<ErrorKind, string>> = {
  job: 'the job did what it should not: a step failed',
  user: 'the command line, the job file or this machine needs a change; nothing was run',
  policy: 'a policy forbids it',
  timeout: 'something took longer than it may',
  system: 'not the fault of the job: this machine, the VMM or ct; running the job again may help',
  'untrusted-input': 'bytes from a guest or a peer were refused; not the fault of this machine',
  cancelled: 'somebody ended the run',
};

/** Content per path, relative to the root of the repository. */
export function generatedDocuments(): ReadonlyMap<string, string> {
  return new Map([
    ['docs/errors.md', errorReference()],
    ['docs/cli.md', cliReference(COMMANDS)],
  ]);
}

function errorReference(): string {
  const kinds = Object.entries(KINDS).map(
    ([kind, meaning]) => `| ${EXIT_STATUS[kind as ErrorKind]} | ${kind} | ${meaning} |`,
  );
  const codes = Object.entries(ERROR_CODES).map(
    ([code, { kind, http, when }]) => `| \`${code}\` | ${kind} | ${EXIT_STATUS[kind]} | ${http} | ${when} |`,
  );
  return `# Errors and exit statuses

Generated from \`src/core/errors.ts\` by \`setup/generate-docs.ts\`; do not edit.

An error has a code that stays the same, a message that says what happened, and mostly a hint that says what to do:

    error[JOB_NOT_FOUND]: ct.yml defines no job \`biuld\`
      hint: did you mean \`build\`?

With \`--json\` it is \`{"error": {"code", "message", "hint"}}\`, or the \`error\` of a job in the document.

## Exit status of ct

| status | kind of error | meaning |
|---|---|---|
| 0 | | everything asked for was done, and every job passed |
${kinds.join('\n')}

When jobs end in different ways, the first of this order counts: cancelled, policy, system, timeout, job.
\`ct run -- CMD\` exits with the status of the command, 128 + signal if one killed it; only what is not the command's
doing has a status of the table. \`ct doctor\` exits with 1 if jobs cannot run. 141 means that what read the output of
ct went away.

## Codes

| code | kind | exit status | HTTP | when |
|---|---|---|---|---|
${codes.join('\n')}
`;
}

if (import.meta.main) {
  for (const [path, content] of generatedDocuments()) writeFileSync(join(installRoot, path), content);
}
