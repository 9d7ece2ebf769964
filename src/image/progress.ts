/** What an image build tells about itself, and how the output of apt and mmdebstrap becomes that. */

export type BuildPhase =
  | 'waiting'
  | 'resolving'
  | 'downloading'
  | 'unpacking'
  | 'configuring'
  | 'cleaning'
  | 'filesystem'
  | 'kernel'
  | 'storing';

export interface BuildProgress {
  readonly phase: BuildPhase;
  /** Of this phase, 0 to 1; absent where nobody knows. */
  readonly fraction?: number;
  /** One line for a user, without a line break: `unpacking gcc-12`. */
  readonly message: string;
}

/** Where in a whole build a phase begins and ends, from 0 to 1: measured with debian-12 and a warm cache. */
const SPANS: Readonly<Record<BuildPhase, readonly [number, number]>> = {
  waiting: [0, 0],
  resolving: [0, 0.06],
  downloading: [0.06, 0.12],
  unpacking: [0.12, 0.45],
  configuring: [0.45, 0.7],
  cleaning: [0.7, 0.72],
  filesystem: [0.72, 0.92],
  kernel: [0.92, 0.95],
  storing: [0.95, 1],
};

/** How far the whole build is, 0 to 1, as far as one can tell. */
export function overallFraction({ phase, fraction = 0 }: BuildProgress): number {
  const [start, end] = SPANS[phase];
  return start + (end - start) * fraction;
}

/** `dlstatus:4:12.5:Retrieving file 21 of 163`, from apt's status descriptor (README.progress-reporting of apt). */
export function downloadProgress(line: string): BuildProgress | undefined {
  const match = /^dlstatus:[^:]*:([0-9.]+):/.exec(line);
  if (match === null) return undefined;
  const of = /([0-9]+) of ([0-9]+)/.exec(line);
  const message = of === null ? 'downloading packages' : `downloading package ${of[1]} of ${of[2]}`;
  return { phase: 'downloading', fraction: Math.min(1, Number(match[1]) / 100), message };
}

/** Follows the verbose output of mmdebstrap, that is of dpkg, apt and our hooks, for a build of `total` packages. */
export class BuildOutput {
  readonly #total: number;
  #unpacked = 0;
  #configured = 0;
  /** What was last begun, for the message of a failure. */
  last: BuildProgress = { phase: 'unpacking', message: 'starting mmdebstrap' };

  constructor(total: number) {
    this.#total = total;
  }

  /** The new state, if `line` tells of one. */
  line(line: string): BuildProgress | undefined {
    const next = this.#parse(line);
    if (next !== undefined) this.last = next;
    return next;
  }

  #parse(line: string): BuildProgress | undefined {
    if (line.startsWith('I: extracting archives'))
      return { phase: 'unpacking', message: 'unpacking the base system' };
    const package_ = /^(Unpacking|Setting up) ([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9]+)? \(/.exec(line);
    if (package_ !== null) {
      const unpacking = package_[1] === 'Unpacking';
      const count = unpacking ? ++this.#unpacked : ++this.#configured;
      return {
        phase: unpacking ? 'unpacking' : 'configuring',
        fraction: Math.min(1, count / Math.max(1, this.#total)),
        message: `${unpacking ? 'unpacking' : 'configuring'} ${package_[2]}`,
      };
    }
    if (line === 'ct: npm') return { phase: 'unpacking', message: 'unpacking npm packages' };
    if (line === 'ct: cleaning') return { phase: 'cleaning', message: 'removing caches, logs and keys' };
    if (line === 'ct: inventory') return { phase: 'filesystem', message: 'listing what is in the image' };
    if (line === 'ct: filesystem') return { phase: 'filesystem', message: 'writing the file system' };
    return undefined;
  }
}
