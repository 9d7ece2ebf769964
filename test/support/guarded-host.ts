/** A host daemon with a stored image, a policy about images, and machines that count claims and give none. */
import { randomBytes } from 'node:crypto';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Alert } from '../../src/audit/alert.ts';
import { CtError } from '../../src/core/errors.ts';
import { socketDirectory } from '../../src/core/paths.ts';
import { PresetResolver } from '../../src/egress/presets/index.ts';
import type { HostClient, JobIo } from '../../src/host/client.ts';
import { ImageGate } from '../../src/host/image-gate.ts';
import type { Machines } from '../../src/host/machines.ts';
import { type HostPolicy, PolicyKeeper } from '../../src/host/policy.ts';
import type { ImageManifest } from '../../src/image/manifest.ts';
import { ImageStore, type MadeHere } from '../../src/image/store.ts';
import type { JobRequest, JobResult, RunEvent } from '../../src/protocol/run.ts';
import { sbomOf } from '../fixtures/vuln/image.ts';
import { scratchDirectory } from './scratch.ts';
import { servedHost } from './served-host.ts';

const HASH = '0'.repeat(64);

export interface GuardedHost extends AsyncDisposable {
  readonly ctHome: string;
  readonly store: ImageStore;
  readonly client: HostClient;
  readonly gate: ImageGate;
  readonly alerts: Alert[];
  /** What `image:` of the policy says, as YAML in one line or several; `more`: further keys of the policy. */
  setPolicy(image: string, more?: string): void;
  /** As the daemon sees it. */
  readonly policy: HostPolicy;
  /** Puts a file beside the policy. */
  addPolicyFile(name: string, contents: string | Uint8Array): void;
  /** Stores an image with all kinds of parts, of random bytes. */
  addImage(how?: MadeHere['how'], change?: Partial<ImageManifest>): Promise<string>;
  /** `claimed`: policy let it in, and a VM was asked for; it ends then. */
  run(
    image: string,
    request?: Partial<JobRequest>,
    io?: Partial<JobIo>,
  ): Promise<{ readonly claimed: boolean; readonly result: JobResult; readonly events: readonly RunEvent[] }>;
}

/** `now`: of the gate alone. */
export async function guardedHost(now: () => Date = () => new Date()): Promise<GuardedHost> {
  await using cleanup = new AsyncDisposableStack();
  const scratch = cleanup.use(scratchDirectory());
  const ctHome = join(scratch.path, 'home');
  const policy = join(ctHome, 'policy');
  mkdirSync(policy, { recursive: true, mode: 0o700 });
  const store = new ImageStore(ctHome);
  store.prepare();
  const setPolicy = (image: string, more = ''): void => {
    const data = `version: 1
audit: off
egress: {mode: enforce, allow: []}
admission: {trust: [local, trusted], repositories: ['*'], refs: ['*'], actors: ['*'], images: ['*']}
limits: {cpus: 4, memory: 4G, disk: 4G, timeout: 1h}
secrets:
  TOKEN: {trust: [local], repositories: ['*'], refs: ['*']}
image:
${image.replaceAll(/^/gm, '  ')}
${more}
`;
    writeFileSync(join(policy, 'data.yml'), data, { mode: 0o600 });
  };
  setPolicy('local: allow');
  let claims = 0;
  const machines = {
    imageName: async (digest: string) => (await store.manifest(digest)).name,
    claim: async () => {
      claims += 1;
      throw new CtError('VMM_EXITED_EARLY', 'there are no machines here');
    },
    templateCount: 0,
  } as unknown as Machines;
  const sockets = await socketDirectory(ctHome);
  cleanup.defer(() => rmSync(sockets, { recursive: true, force: true }));
  const gate = new ImageGate({ ctHome, images: store, now });
  const presets = new PresetResolver({});
  const { client, alerts } = cleanup.use(
    await servedHost({ ctHome, machines, presets, sockets, imageGate: gate }),
  );
  const kept = cleanup.move();
  return {
    ...{ ctHome, store, client, gate, alerts, setPolicy },
    policy: new PolicyKeeper({ ctHome, env: {}, presets, systemDirectory: join(ctHome, 'none') }),
    addPolicyFile: (name, contents) => writeFileSync(join(policy, name), contents, { mode: 0o600 }),
    addImage: async (how, change = {}) => {
      const part = () => store.putBytes(randomBytes(5000));
      const { digest } = await store.putImage(
        {
          schemaVersion: 1,
          name: 'small',
          architecture: 'amd64',
          rootfs: {
            ...(await part()),
            verity: {
              algorithm: 'sha256',
              blockBytes: 4096,
              dataBlocks: 1,
              hashStartBlock: 1,
              rootHash: HASH,
              salt: HASH,
            },
          },
          kernel: { ...(await part()), version: '6.1' },
          initramfs: await part(),
          user: { name: 'ci', uid: 1000, gid: 1000, home: '/home/ci' },
          env: {},
          definitionDigest: `sha256:${HASH}`,
          base: ['debian-12', 'bookworm'],
          packages: [],
          inventory: await part(),
          sbom: {
            cyclonedx: await store.putBytes(Buffer.from(sbomOf('small'))),
            spdx: await part(),
          },
          ...change,
        },
        `sha256:${HASH}`,
        new Date(),
        how,
      );
      return digest;
    },
    run: async (image, request = {}, io = {}) => {
      const before = claims;
      const events: RunEvent[] = [];
      const result = await client.runJob(
        {
          name: 'job',
          image,
          cpus: 1,
          memoryMib: 256,
          diskMib: 64,
          env: {},
          steps: [
            {
              name: 'step',
              argv: ['true'],
              env: {},
              workingDirectory: '.',
              condition: 'success',
              secrets: [{ name: 'TOKEN' }],
            },
          ],
          timeoutMs: 30_000,
          artifacts: [],
          sendsTree: false,
          ...request,
        },
        {
          onEvent: (event) => void events.push(event),
          onOutput: () => {},
          secrets: new Map([['TOKEN', Buffer.from('a secret value')]]) as never,
          signal: new AbortController().signal,
          ...io,
        },
      );
      return { claimed: claims > before, result, events };
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}
