/** The check of a job's packages (packages.ts): reads in the VM what decides about them, before and after they are fetched. */
import { CtError } from '../core/errors.ts';
import type { ExecRequest, ExecResult } from '../guest/session.ts';
import { WORKSPACE_DIRECTORY } from '../protocol/guest-link.ts';
import type { PackageManager, StepRequest } from '../protocol/run.ts';
import {
  filesOf,
  type Inputs,
  inputNames,
  lockOf,
  MANAGERS,
  MAX_INPUT_BYTES,
  type Problem,
  problemOf,
} from './packages.ts';

type Exec = (request: Pick<ExecRequest, 'argv' | 'onOutput'> & Partial<ExecRequest>) => Promise<ExecResult>;

export class PackageCheck {
  readonly #exec: Exec;
  /** By working directory, as they are in the working tree. */
  readonly #before = new Map<string, Inputs>();

  /** `exec` runs something as the job's user. */
  constructor(exec: Exec) {
    this.#exec = exec;
  }

  /** Before the first step: what these steps fetch is measured by the working tree. Throws what `exec` does, or GUEST_PROTOCOL. */
  async begin(steps: readonly StepRequest[]): Promise<void> {
    for (const { packages, workingDirectory } of steps) {
      if (packages?.role !== 'fetch' || this.#before.has(workingDirectory)) continue;
      const { manager } = packages;
      const first = await this.#read(manager, workingDirectory, inputNames(manager, new Map()));
      this.#before.set(
        workingDirectory,
        await this.#read(manager, workingDirectory, inputNames(manager, first)),
      );
    }
  }

  /** What is wrong, before a step that checks installs anything; undefined with all other steps. Throws as {@link begin}. */
  async problemOf({ packages, workingDirectory }: StepRequest): Promise<Problem | undefined> {
    if (packages?.role !== 'verify') return undefined;
    const before = this.#before.get(workingDirectory) ?? new Map();
    const { manager } = packages;
    const now = await this.#read(manager, workingDirectory, inputNames(manager, before));
    return problemOf(manager, before, now);
  }

  /** A step has failed: because an archive has another digest? `output`: its end. */
  mismatch({ packages, workingDirectory }: StepRequest, output: string): Problem | undefined {
    if (!packages || !MANAGERS[packages.manager].mismatch.test(output)) return undefined;
    const before = this.#before.get(workingDirectory) ?? new Map();
    return { problem: 'mismatch', path: lockOf(packages.manager, before) };
  }

  async #read(manager: PackageManager, directory: string, names: readonly string[]): Promise<Inputs> {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const result = await this.#exec({
      builtin: 'tree-out',
      argv: [
        directory === '.' ? WORKSPACE_DIRECTORY : `${WORKSPACE_DIRECTORY}/${directory}`,
        // As patterns; one that fits more brings what is not asked for.
        ...names.map((name) => name.replaceAll(/[*?[\]!\\]/g, '?')),
      ],
      onOutput: (stream, chunk) => {
        if (stream === 'stderr') return;
        bytes += chunk.length;
        if (bytes <= MAX_INPUT_BYTES) chunks.push(Buffer.from(chunk));
      },
    });
    if (result.kind !== 'exited' || result.code !== 0) return new Map(); // there is no such directory
    const files = bytes <= MAX_INPUT_BYTES ? filesOf(Buffer.concat(chunks)) : undefined;
    if (files) return files;
    throw new CtError(
      'GUEST_PROTOCOL',
      `the lock file of ${manager} could not be read in the VM (${bytes} bytes)`,
    );
  }
}
