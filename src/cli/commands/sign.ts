/** `ct sign`. */
import { relative, resolve } from 'node:path';
import { CtError } from '../../core/errors.ts';
import { printable } from '../../core/source-text.ts';
import { isBelow, type Manifest, manifestStatement } from '../../verification/manifest.ts';
import { readManifest, verifyManifest } from '../../verification/manifest-bundle.ts';
import type { VerifiedSigner } from '../../verification/verify.ts';
import type { ParsedOptions } from '../command.ts';
import { acceptedSigners, describeSigner, readInput } from '../image-signers.ts';
import type { Output } from '../output.ts';
import { Terminal } from '../render/terminal.ts';
import { collectManifest, compareManifest, type ManifestChange } from '../sign-files.ts';
import { writeInProject } from '../write-in-project.ts';

const DEFAULT_OUTPUT = 'ct.signed.json';
const EXIT_CHANGED = new CtError('VERIFY_FILE_CHANGED', '').exitStatus;

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const root = resolve(parsed.value('directory') ?? '.');
  return parsed.has('check') ? await check(root, parsed, output) : await sign(root, parsed, output);
}

async function sign(root: string, parsed: ParsedOptions, output: Output): Promise<number> {
  if (parsed.positionals.length === 0) {
    throw new CtError('USAGE', 'ct sign needs the files and directories to sign', {
      hint: 'see: ct sign --help',
    });
  }
  const { signerOf } = await import('../signer.ts');
  const signer = await signerOf(parsed);
  const path = resolve(root, parsed.value('output') ?? DEFAULT_OUTPUT);
  const manifest = await collectManifest(root, parsed.positionals);
  const own = relative(root, path);
  if (manifest.files.has(own) || manifest.directories.some((directory) => isBelow(own, directory))) {
    throw new CtError('USAGE', `the manifest would lie among the files that it is about: ${printable(own)}`, {
      hint: 'write it elsewhere: --output FILE',
    });
  }
  const bundle = await signer.signStatement(manifestStatement(manifest));
  await writeInProject(path, bundle);
  if (parsed.has('json')) {
    print(output, { manifest: own, ...contentOf(manifest) });
    return 0;
  }
  using terminal = new Terminal(output, { live: false });
  terminal.line(`${terminal.style.green('✓')} ${summary(manifest)} signed (${own})`);
  return 0;
}

async function check(root: string, parsed: ParsedOptions, output: Output): Promise<number> {
  const [named, extra] = parsed.positionals;
  if (extra !== undefined) throw new CtError('USAGE', 'ct sign --check takes one manifest');
  const path = named ?? parsed.value('output') ?? DEFAULT_OUTPUT;
  const bundle = readInput(resolve(root, path));
  const accepted = acceptedSigners(parsed);
  const signer: VerifiedSigner | undefined =
    accepted && verifyManifest(bundle, accepted.trust, accepted.policy, new Date()).signer;
  const manifest = readManifest(bundle);
  const changes = await compareManifest(root, manifest);
  if (parsed.has('json')) {
    const { kind, ...who } = signer?.signer ?? { kind: undefined };
    print(output, {
      manifest: path,
      ...contentOf(manifest),
      ...(kind === undefined ? {} : { signer: { kind, ...who } }),
      changes,
    });
    return changes.length === 0 ? 0 : EXIT_CHANGED;
  }
  using terminal = new Terminal(output, { live: false });
  for (const change of changes) terminal.line(`${terminal.style.red('✗')} ${describeChange(change)}`);
  const { green, red, dim } = terminal.style;
  const mark = changes.length === 0 ? green('✓') : red('✗');
  const state = changes.length === 0 ? 'nothing changed' : `${changes.length} changed`;
  terminal.line(`${mark} ${printable(path)} covers ${summary(manifest)}: ${state}`);
  terminal.line(
    dim(
      signer
        ? `  signed by ${describeSigner(signer)}`
        : '  not verified who signed it: name a --key or --identity',
    ),
  );
  return changes.length === 0 ? 0 : EXIT_CHANGED;
}

function describeChange({ path, what }: ManifestChange): string {
  const words = { changed: 'is not as it was signed', missing: 'is missing', unlisted: 'was added' };
  return `${printable(path)} ${words[what]}`;
}

function contentOf({ files, links, directories }: Manifest): object {
  return {
    files: [...files].map(([path, hex]) => ({ path, digest: `sha256:${hex}` })),
    links: [...links].map(([path, target]) => ({ path, target })),
    directories,
  };
}

function summary({ files, links, directories }: Manifest): string {
  const parts = [count(files.size, 'file')];
  if (links.size > 0) parts.push(count(links.size, 'link'));
  if (directories.length > 0) parts.push(`all of ${directories.map(printable).join(', ')}`);
  return parts.join(', ');
}

function count(number: number, what: string): string {
  return `${number} ${what}${number === 1 ? '' : 's'}`;
}

function print(output: Output, document: object): void {
  output.write('stdout', `${JSON.stringify({ version: 1, ...document }, undefined, 2)}\n`);
}
