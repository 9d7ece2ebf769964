/** `ct image sign`. */
import { CtError } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { blobsOf } from '../../../image/manifest.ts';
import { ImageSignatures, imageStatement } from '../../../image/signatures.ts';
import { ImageStore } from '../../../image/store.ts';
import { ownKey } from '../../../signing/own-key.ts';
import { NO_SERVICES, parseSigningConfig } from '../../../signing/services.ts';
import { keylessSigner, keySigner, type Signer } from '../../../signing/signer.ts';
import type { ParsedOptions } from '../../command.ts';
import { readInput } from '../../image-signers.ts';
import { storedDigest } from '../../images.ts';
import type { Output } from '../../output.ts';
import { Terminal } from '../../render/terminal.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const signer = await signerOf(parsed);
  const ctHome = ctHomePath();
  const store = new ImageStore(ctHome);
  const digest = await storedDigest(store, parsed.positionals[0] ?? '');
  const manifest = await store.manifest(digest);
  // Nobody shall stand for what is damaged already.
  for (const ref of blobsOf(manifest)) await store.checkedBlobPath(ref);
  const stored = await store.find(manifest.name);
  const inputsDigest = stored?.digest === digest ? stored.inputsDigest : undefined;
  const bundle = await signer.signStatement(imageStatement(manifest.name, digest, inputsDigest));
  await new ImageSignatures(ctHome).add(digest, bundle);
  if (parsed.has('json')) {
    output.write('stdout', `${JSON.stringify({ version: 1, name: manifest.name, digest }, undefined, 2)}\n`);
    return 0;
  }
  using terminal = new Terminal(output, { live: false });
  terminal.line(`${terminal.style.green('✓')} ${manifest.name} signed (${digest.slice(0, 19)})`);
  return 0;
}

async function signerOf(parsed: ParsedOptions): Promise<Signer> {
  const keyPath = parsed.value('key');
  const tokenPath = parsed.value('identity-token');
  const configPath = parsed.value('signing-config');
  const services =
    configPath === undefined ? NO_SERVICES : parseSigningConfig(readInput(configPath), new Date());
  if (keyPath !== undefined && tokenPath === undefined) {
    const passphrasePath = parsed.value('passphrase-file');
    const passphrase =
      passphrasePath === undefined
        ? undefined
        : async () =>
            readInput(passphrasePath)
              .toString('utf8')
              .replace(/\r?\n$/, '');
    return keySigner(await ownKey(readInput(keyPath).toString('utf8'), passphrase), services);
  }
  if (tokenPath !== undefined && keyPath === undefined) {
    return keylessSigner(async () => readInput(tokenPath).toString('utf8'), services);
  }
  throw new CtError('USAGE', 'an image is signed with a --key, or as the identity of an --identity-token', {
    hint: '--identity-token needs --signing-config, which names the services',
  });
}
