/** A project with everything that can be signed, the policy of a host that demands it, and what that makes of the project. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { collectEvidence } from '../../src/cli/evidence.ts';
import { collectManifest } from '../../src/cli/sign-files.ts';
import { type VerifiedJob, verifyJob } from '../../src/host/job-verification.ts';
import type { CurrentPolicy } from '../../src/host/policy.ts';
import { loadPolicy } from '../../src/host/policy-source.ts';
import { packTree } from '../../src/job/tree.ts';
import { CheckedTree } from '../../src/job/tree-check.ts';
import type { Evidence } from '../../src/protocol/evidence.ts';
import type { JobOrigin } from '../../src/protocol/network.ts';
import type { JobRequest } from '../../src/protocol/run.ts';
import type { EvidenceDemands, VerifyRequest } from '../../src/protocol/verify.ts';
import { generateKeyPair, type KeyPair, ownKey } from '../../src/signing/own-key.ts';
import { NO_SERVICES } from '../../src/signing/services.ts';
import { keySigner, type Signer } from '../../src/signing/signer.ts';
import { manifestStatement } from '../../src/verification/manifest.ts';
import { scratchDirectory } from './scratch.ts';

export const REGISTRY = 'https://registry.example';

export class SignedProject implements Disposable {
  readonly root: string;
  readonly policyDirectory: string;
  readonly #scratch = scratchDirectory('ct-signed-');

  /** `policyDirectory`: where its policy lies, if not beside it. */
  constructor(policyDirectory?: string) {
    this.root = join(this.#scratch.path, 'project');
    this.policyDirectory = policyDirectory ?? join(this.#scratch.path, 'policy');
    mkdirSync(this.root);
    mkdirSync(this.policyDirectory, { mode: 0o700, recursive: true });
  }

  path(name: string): string {
    return join(this.#scratch.path, name);
  }

  write(path: string, content: string | Uint8Array): void {
    mkdirSync(dirname(join(this.root, path)), { recursive: true });
    writeFileSync(join(this.root, path), content);
  }

  git(...args: string[]): string {
    return execFileSync(
      'git',
      ['-c', 'user.name=T', '-c', 'user.email=t@example.org', '-c', 'commit.gpgSign=false', ...args],
      {
        cwd: this.root,
        encoding: 'utf8',
        env: { ...process.env, GIT_CONFIG_GLOBAL: '/dev/null', GIT_CONFIG_SYSTEM: '/dev/null' },
      },
    ).trim();
  }

  /** A new SSH key; its public half, as a line of allowed signers needs it. */
  sshKey(name: string): string {
    const path = this.path(name);
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', 'k', '-f', path]);
    return readFileSync(`${path}.pub`, 'utf8').trim();
  }

  signedCommit(key: string, message = 'signed'): void {
    this.git(
      '-c',
      'gpg.format=ssh',
      '-c',
      `user.signingkey=${this.path(key)}`,
      'commit',
      '-qS',
      '--allow-empty',
      '-m',
      message,
    );
  }

  async manifest(signer: Signer, paths: readonly string[]): Promise<Buffer> {
    return await signer.signStatement(manifestStatement(await collectManifest(this.root, paths)));
  }

  /** `verify`: that key of the policy data, as an object. */
  policy(verify: object, files: Readonly<Record<string, string | Uint8Array>> = {}, more: object = {}): void {
    rmSync(this.policyDirectory, { recursive: true });
    mkdirSync(this.policyDirectory, { mode: 0o700 });
    const data = {
      version: 1,
      egress: { mode: 'enforce', allow: [] },
      admission: {
        trust: ['local', 'trusted'],
        repositories: ['*'],
        refs: ['*'],
        actors: ['*'],
        images: ['*'],
      },
      limits: { cpus: 64, memory: '256G', disk: '1T', timeout: '1d' },
      secrets: { '*': { trust: ['local', 'trusted'], repositories: ['*'], refs: ['*'] } },
      verify,
      ...more,
    };
    writeFileSync(join(this.policyDirectory, 'data.json'), JSON.stringify(data), { mode: 0o600 });
    for (const [name, content] of Object.entries(files)) {
      writeFileSync(join(this.policyDirectory, name), content, { mode: 0o600 });
    }
  }

  evidence(demands: EvidenceDemands): Promise<Evidence> {
    return collectEvidence(this.root, demands);
  }

  /**
   * What the host makes of the project: its decision, then the comparison of the tree as it is sent. `tamper` changes what the
   * client sends of evidence. Throws what ends the run.
   */
  async verify(
    request: VerifyRequest,
    options: {
      readonly tamper?: (evidence: Evidence) => Evidence;
      readonly origin?: Partial<JobOrigin>;
    } = {},
  ): Promise<VerifiedJob | undefined> {
    const loaded = await loadPolicy(this.policyDirectory, {
      ctHome: this.#scratch.path,
      env: {},
      resolvePresets: async () => [],
    });
    const verified = await verifyJob({
      request: { verify: request } as JobRequest,
      run: { id: 'r1', job: 'build', trust: 'local', ...options.origin },
      policy: { engine: loaded.engine, jobTrust: loaded.jobTrust } as CurrentPolicy,
      presets: { resolve: async () => [] },
      askClient: async (demands) => {
        const evidence = await this.evidence(demands);
        return options.tamper?.(evidence) ?? evidence;
      },
      record: () => {},
    });
    if (verified) {
      const tree = new CheckedTree(packTree({ root: this.root, respectIgnore: true }), verified.expected);
      for await (const _ of tree);
    }
    return verified;
  }

  [Symbol.dispose](): void {
    this.#scratch[Symbol.dispose]();
  }
}

/** A bundle's JSON, changed. */
// biome-ignore lint/suspicious/noExplicitAny: tests reach into the document
export function edited(bundle: Uint8Array, change: (json: any) => void): Buffer {
  const json: unknown = JSON.parse(Buffer.from(bundle).toString());
  change(json);
  return Buffer.from(JSON.stringify(json));
}

export async function ownSigner(
  keys: KeyPair = generateKeyPair(),
): Promise<{ signer: Signer; publicKey: string }> {
  return { signer: keySigner(await ownKey(keys.privateKeyPem), NO_SERVICES), publicKey: keys.publicKeyPem };
}

export function sha512Integrity(text: string): string {
  return `sha512-${createHash('sha512').update(text).digest('base64')}`;
}
