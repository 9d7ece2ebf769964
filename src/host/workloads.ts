/**
 * What `ct bench workload` runs. Each workload is a directory that is the same on every machine, with a script that
 * measures its own time: it says nothing of a VM or a container, and runs in both as it is.
 */
import { closeSync, cpSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { installRoot } from '../core/install.ts';
import { runProgram } from '../core/run-program.ts';

export const WORKLOADS = ['compile', 'clone', 'disk', 'npm'] as const;
export type Workload = (typeof WORKLOADS)[number];

/** The one that needs a network: a registry at $REGISTRY. */
export const NETWORK_WORKLOAD = 'npm' satisfies Workload;
/** What it installs and tests. */
export const NPM_PROJECT: string = join(installRoot, 'examples/node');

/** In the tree of every workload. */
export const WORKLOAD_SCRIPT = 'workload.sh';

/** Of the project that `compile` makes. */
export const C_FILES = 20;
const FUNCTIONS_PER_FILE = 12;
const REPOSITORY_FILES = 200;
const COMMITS = 30;
const FILES_PER_COMMIT = 12;
const LINES_PER_FILE = 60;
/** `dd` writes this often this much. */
const LARGE_FILES = 4;
const LARGE_MIB = 16;
const SMALL_DIRECTORIES = 20;
const SMALL_FILES = 20;

/** EPOCHREALTIME costs no process, whose start would be measured as well. Its decimal point depends on the locale. */
const TIMED = `
need() { for tool; do type "$tool" >/dev/null 2>&1 || { echo "the image has no $tool" >&2; exit 3; }; done; }
now() { now=\${EPOCHREALTIME/[.,]/}; }
begin() { now; began=$now; }
end() { now; echo "workload-us $((now - began))"; }
`;

/** The time that a workload's script has printed, in ms; undefined if it has printed none. The text is the guest's. */
export function parseWorkloadMs(output: string): number | undefined {
  const us = /^workload-us (\d{1,12})$/m.exec(output)?.[1];
  return us === undefined ? undefined : Number(us) / 1000;
}

/**
 * Writes the tree of a workload into `directory`, which is empty. Throws REQUIREMENT_MISSING without git, which makes the
 * repository.
 */
export async function writeWorkload(
  workload: Workload,
  directory: string,
  signal: AbortSignal,
): Promise<void> {
  const scripts: Readonly<Record<Workload, string>> = {
    compile: COMPILE,
    clone: CLONE,
    disk: DISK,
    npm: NPM,
  };
  writeFileSync(join(directory, WORKLOAD_SCRIPT), `set -eu\n${TIMED}\n${scripts[workload]}`);
  if (workload === 'compile') writeCompileTree(directory);
  if (workload === 'npm') {
    cpSync(NPM_PROJECT, directory, {
      recursive: true,
      filter: (path) => !path.startsWith(join(NPM_PROJECT, 'node_modules')),
    });
  }
  if (workload === 'clone') await writeRepository(join(directory, 'origin.git'), signal);
}

// ---------------------------------------------------------------------------------------------------- npm

/** Without the requests of npm that have nothing to do with installing. */
const NPM = `
need node npm
export npm_config_registry=$REGISTRY npm_config_audit=false npm_config_fund=false npm_config_update_notifier=false
begin
npm ci --loglevel=error
npm test > tests
end
grep -q 'fail 0$' tests
`;

// ------------------------------------------------------------------------------------------------ compile

const COMPILE = `
need gcc make
begin
make -s -j1
end
./program
`;

/** A program of some files that calls all of them and fails if a sum is not what it has to be. */
function writeCompileTree(directory: string): void {
  const numbers = Array.from({ length: C_FILES }, (_, index) => index);
  const unit = (file: number): string => {
    const functions = Array.from({ length: FUNCTIONS_PER_FILE }, (_, index) => {
      const name = `unit_${file}_${index}`;
      return [
        `static unsigned ${name}(const char *text, unsigned seed)`,
        '{',
        `\tunsigned sum = seed + ${file * 31 + index}u;`,
        '\tfor (size_t at = 0; at < strlen(text); at++) {',
        '\t\tswitch ((unsigned char)text[at] % 4) {',
        `\t\tcase 0: sum = sum * ${index + 3}u + at; break;`,
        `\t\tcase 1: sum ^= (sum << ${(index % 7) + 1}) | (unsigned)text[at]; break;`,
        '\t\tcase 2: sum -= (unsigned)(at * at); break;',
        '\t\tdefault: sum = (sum >> 3) | (sum << 29);',
        '\t\t}',
        '\t}',
        '\treturn sum;',
        '}',
      ].join('\n');
    });
    const calls = functions.map((_, index) => `\tsum += unit_${file}_${index}(text, sum);`).join('\n');
    return [
      '#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include "units.h"',
      ...functions,
      `unsigned unit_${file}(const char *text, unsigned sum)\n{\n${calls}\n\treturn sum;\n}\n`,
    ].join('\n\n');
  };
  for (const file of numbers) writeFileSync(join(directory, `unit${file}.c`), unit(file));
  const declarations = numbers.map((file) => `unsigned unit_${file}(const char *text, unsigned sum);\n`);
  writeFileSync(join(directory, 'units.h'), declarations.join(''));
  // Twice the same sum from the same text: the compiler cannot know it, and a broken program shows.
  const main = [
    '#include <stdio.h>\n#include "units.h"\n',
    'static unsigned all(const char *text)\n{\n\tunsigned sum = 1;',
    ...numbers.map((file) => `\tsum = unit_${file}(text, sum);`),
    '\treturn sum;\n}\n',
    'int main(int argc, char **argv)\n{\n\t(void)argc;\n\tunsigned sum = all(argv[0]);',
    '\tprintf("sum %u\\n", sum);\n\treturn sum != all(argv[0]);\n}\n',
  ];
  writeFileSync(join(directory, 'main.c'), main.join('\n'));
  const objects = ['main.o', ...numbers.map((file) => `unit${file}.o`)].join(' ');
  writeFileSync(
    join(directory, 'Makefile'),
    `CFLAGS = -O1 -Wall\nprogram: ${objects}\n\tgcc -o $@ $^\n%.o: %.c units.h\n\tgcc $(CFLAGS) -c -o $@ $<\n`,
  );
}

// ------------------------------------------------------------------------------------------------ clone

/** --no-local: packs and unpacks objects as over a network, instead of linking files. */
const CLONE = `
need git
begin
git clone -q --no-local origin.git clone
end
[ "$(git -C clone rev-list --count HEAD)" = ${COMMITS} ]
`;

/** A bare repository of one pack, from a stream that is the same everywhere (git-fast-import(1)). */
async function writeRepository(path: string, signal: AbortSignal): Promise<void> {
  const git = (args: readonly string[], stdin?: number): Promise<Buffer> =>
    runProgram({
      file: 'git',
      args,
      env: { GIT_CONFIG_NOSYSTEM: '1', GIT_CONFIG_GLOBAL: '/dev/null', HOME: '/nonexistent' },
      maxOutputBytes: 65_536,
      signal,
      failureCode: 'INTERNAL',
      ...(stdin === undefined ? {} : { stdin }),
    });
  await git(['init', '-q', '--bare', '--template=', '--initial-branch=main', path]);
  const streamPath = `${path}.stream`;
  using cleanup = new DisposableStack();
  cleanup.defer(() => rmSync(streamPath, { force: true }));
  writeFileSync(streamPath, repositoryStream());
  const stream = openSync(streamPath, 'r');
  cleanup.defer(() => closeSync(stream));
  await git(['-C', path, 'fast-import', '--quiet'], stream);
}

function repositoryStream(): string {
  const random = new Random();
  const words = Array.from({ length: 500 }, () => random.next().toString(36));
  const content = (): string =>
    Array.from({ length: LINES_PER_FILE }, () =>
      Array.from({ length: 8 }, () => words[random.next() % words.length]).join(' '),
    ).join('\n');
  const parts: string[] = [];
  const data = (text: string): string => `data ${Buffer.byteLength(text)}\n${text}\n`;
  for (let commit = 0; commit < COMMITS; commit++) {
    const seconds = 1_700_000_000 + commit * 3600;
    parts.push(`commit refs/heads/main\ncommitter Bench <bench@example.com> ${seconds} +0000\n`);
    parts.push(data(`Change ${commit}`));
    const files = commit === 0 ? REPOSITORY_FILES : FILES_PER_COMMIT;
    for (let index = 0; index < files; index++) {
      const file = commit === 0 ? index : random.next() % REPOSITORY_FILES;
      parts.push(`M 100644 inline src/part${file % 16}/file${file}.txt\n`, data(content()));
    }
  }
  return parts.join('');
}

/** The same numbers everywhere (xorshift32, Marsaglia 2003). */
class Random {
  #state = 0x2545_f491;

  /** From 1 to 2³² - 1. */
  next(): number {
    let state = this.#state;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    this.#state = state >>> 0;
    return this.#state;
  }
}

// ------------------------------------------------------------------------------------------------ disk

/** What is written is random, so that no layer below can make it smaller; it is made before the clock starts. */
const DISK = `
need dd head cmp sync
head -c ${LARGE_MIB}M /dev/urandom > seed
begin
for i in {1..${LARGE_FILES}}; do dd if=seed of=large$i bs=1M conv=fsync status=none; done
for i in {1..${LARGE_FILES}}; do cmp seed large$i; done
rm large*
for d in {1..${SMALL_DIRECTORIES}}; do
	mkdir -p small/$d
	for f in {1..${SMALL_FILES}}; do echo "file $f of directory $d" > small/$d/$f; done
done
sync small/*/*
cat small/*/* > all
rm -r small
end
[ "$(wc -l < all)" = ${SMALL_DIRECTORIES * SMALL_FILES} ]
`;
