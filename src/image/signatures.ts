/**
 * Signatures of stored images: Sigstore bundles, each about the digest of a manifest, below CT_HOME:
 *
 *     images/sha256/<hex of the manifest>/<hex of the bundle>.sigstore.json
 *
 * Nothing in them is trusted because it lies there: they are verified whenever it matters.
 */
import { createHash } from 'node:crypto';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeAtomically } from '../core/atomic-file.ts';
import { CtError, toCtError } from '../core/errors.ts';
import { MAX_BUNDLE_BYTES } from '../verification/bundle.ts';
import { buildStatement, type Statement } from '../verification/statement.ts';

/** Says of an image that its signer stands for it; the predicate has its name. */
export const IMAGE_PREDICATE_TYPE = 'urn:ct:image:v1';

/** As many as are verified. */
export const MAX_IMAGE_SIGNATURES = 64;
const SUFFIX = '.sigstore.json';

export class ImageSignatures {
  readonly #home: string;

  /** Touches nothing. */
  constructor(ctHome: string) {
    this.#home = ctHome;
  }

  /** The bundles of an image, in the order of their digests; the same one is there once. Throws SIGNATURE_MALFORMED. */
  async list(imageDigest: string): Promise<readonly Buffer[]> {
    const directory = this.#directory(imageDigest);
    const names = await readdir(directory).catch(() => []);
    const files = names.filter((name) => name.endsWith(SUFFIX)).sort();
    if (files.length > MAX_IMAGE_SIGNATURES) {
      throw new CtError('SIGNATURE_MALFORMED', `an image has more than ${MAX_IMAGE_SIGNATURES} signatures`);
    }
    const bundles: Buffer[] = [];
    for (const name of files) {
      const path = join(directory, name);
      if ((await stat(path)).size > MAX_BUNDLE_BYTES) {
        throw new CtError('SIGNATURE_MALFORMED', `${path} is too large for a signature`);
      }
      bundles.push(await readFile(path));
    }
    return bundles;
  }

  /** Changes when a signature comes, goes or is written to, as far as stat(2) tells. */
  async state(imageDigest: string): Promise<string> {
    return directoryState(this.#directory(imageDigest), SUFFIX);
  }

  /** Keeps a bundle. It appears complete or not at all. */
  async add(imageDigest: string, bundle: Uint8Array): Promise<void> {
    const name = `${createHash('sha256').update(bundle).digest('hex')}${SUFFIX}`;
    try {
      await writeAtomically(join(this.#directory(imageDigest), name), bundle);
    } catch (error) {
      throw toCtError(error);
    }
  }

  #directory(imageDigest: string): string {
    return imageDirectory(this.#home, imageDigest);
  }
}

/** Where everything lies that is said about an image. */
export function imageDirectory(ctHome: string, imageDigest: string): string {
  const hex = /^sha256:([0-9a-f]{64})$/.exec(imageDigest)?.[1];
  if (hex === undefined) throw new CtError('INTERNAL', `${imageDigest} is no digest of an image`);
  return join(ctHome, 'images/sha256', hex);
}

/** Names, inodes, sizes and times of the files of a directory that end so; those of none if it is not there. */
export async function directoryState(directory: string, suffix: string): Promise<string> {
  const names = (await readdir(directory).catch(() => [])).filter((name) => name.endsWith(suffix)).sort();
  const states = await Promise.all(
    names.map(async (name) => {
      const stats = await stat(join(directory, name), { bigint: true }).catch(() => undefined);
      return [name, stats?.ino, stats?.size, stats?.mtimeNs, stats?.ctimeNs].join(' ');
    }),
  );
  return states.join('\n');
}

/**
 * What a signature of an image says: its name, when it was signed, which counts where no log and no timestamp authority
 * says it, and what it was made from, so that whoever pulls it knows it to be current.
 */
export function imageStatement(
  name: string,
  digest: string,
  { signedAt, inputsDigest }: { readonly signedAt?: Date; readonly inputsDigest?: string | undefined } = {},
): Statement {
  return buildStatement({
    subjects: [{ name, digest }],
    predicateType: IMAGE_PREDICATE_TYPE,
    predicate: {
      name,
      ...(signedAt === undefined ? {} : { signedAt: signedAt.toISOString() }),
      ...(inputsDigest === undefined ? {} : { inputsDigest }),
    },
  });
}

/** When its signer says that it was signed. */
export function statedTime({ predicate }: Statement): Date | undefined {
  const { signedAt } = (predicate ?? {}) as { signedAt?: unknown };
  const time = typeof signedAt === 'string' ? new Date(signedAt) : undefined;
  return time === undefined || Number.isNaN(time.getTime()) ? undefined : time;
}

/** What a verified statement says that the image was made from (StoredImage.inputsDigest). */
export function inputsOf({ predicate }: Statement): string | undefined {
  const { inputsDigest } = (predicate ?? {}) as { inputsDigest?: unknown };
  return typeof inputsDigest === 'string' && /^sha256:[0-9a-f]{64}$/.test(inputsDigest)
    ? inputsDigest
    : undefined;
}
