/**
 * Which descriptors of which process are connected sockets, as its system calls tell. Numbers come from a guest, so everything
 * is bounded; a guest that goes beyond hides from this only what it could hide otherwise, too.
 */
const MAX_PROCESSES = 4096;
const MAX_DESCRIPTORS = 1024;
/** RLIMIT_NOFILE of jobs; beyond it there are no descriptors. */
const MAX_DESCRIPTOR = 1_048_576;

export class OpenSockets {
  /** By process. */
  readonly #sockets = new Map<number, Set<number>>();

  connected(pid: number, fd: bigint): void {
    this.#add(pid, fd);
  }

  /** dup2(2) and its like: `to` is what `from` is, and no longer what it was. */
  duplicated(pid: number, from: bigint, to: bigint): void {
    const sockets = this.#sockets.get(pid);
    if (!sockets || from === to) return;
    if (sockets.has(Number(from))) this.#add(pid, to);
    else this.closed(pid, to, to);
  }

  /** Descriptors `first` to `last`. */
  closed(pid: number, first: bigint, last: bigint): void {
    const sockets = this.#sockets.get(pid);
    if (!sockets) return;
    if (first === last) sockets.delete(Number(first));
    else for (const fd of sockets) if (BigInt(fd) >= first && BigInt(fd) <= last) sockets.delete(fd);
    if (sockets.size === 0) this.#sockets.delete(pid);
  }

  forked(parent: number, child: number): void {
    for (const fd of this.#sockets.get(parent) ?? []) this.#add(child, BigInt(fd));
  }

  ended(pid: number): void {
    this.#sockets.delete(pid);
  }

  /** Of stdin, stdout and stderr, those that are sockets. */
  standard(pid: number): number[] {
    const sockets = this.#sockets.get(pid);
    return sockets ? [0, 1, 2].filter((fd) => sockets.has(fd)) : [];
  }

  #add(pid: number, fd: bigint): void {
    if (fd < 0n || fd > MAX_DESCRIPTOR) return;
    let sockets = this.#sockets.get(pid);
    if (!sockets) {
      if (this.#sockets.size >= MAX_PROCESSES) {
        for (const [oldest] of this.#sockets) {
          this.#sockets.delete(oldest);
          break;
        }
      }
      sockets = new Set();
      this.#sockets.set(pid, sockets);
    }
    if (sockets.size < MAX_DESCRIPTORS) sockets.add(Number(fd));
  }
}
