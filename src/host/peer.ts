/** Who is at the other end of a connection on the daemon's socket: the kernel knows, and no client can lie about it. */
import type { Socket } from 'node:net';
import { CtError } from '../core/errors.ts';
import { launcherPath } from '../core/install.ts';
import { runProgram } from '../core/run-program.ts';

/** One line of two numbers. */
const MAX_ANSWER_BYTES = 64;

/** User id of the process that made the connection (SO_PEERCRED, unix(7)); the launcher asks, as Node cannot. */
export async function peerUid(socket: Socket): Promise<number> {
  const { fd } = (socket as { _handle?: { fd?: number } })._handle ?? {};
  if (fd === undefined || fd < 0) throw new CtError('HOST_PROTOCOL', 'the connection is gone');
  const answer = await runProgram({
    file: launcherPath,
    args: ['peer', '3'],
    // Not as stdin: libuv makes the descriptors 0 to 2 of a child blocking, and so this end of the connection as well.
    extraFds: [fd],
    maxOutputBytes: MAX_ANSWER_BYTES,
    failureCode: 'HOST_PROTOCOL',
  });
  const uid = /^(\d+) \d+\n$/.exec(answer.toString())?.[1];
  if (uid === undefined) throw new CtError('INTERNAL', 'the launcher did not name the peer of a connection');
  return Number(uid);
}

/**
 * Lets in the daemon's own user and root, who may do anything here anyway. The socket's directory keeps others out;
 * this holds also where somebody has opened it to them. Returns the user id. Throws PEER_REFUSED.
 */
export async function admitPeer(socket: Socket, ownUid: number): Promise<number> {
  const uid = await peerUid(socket);
  if (uid === ownUid || uid === 0) return uid;
  throw new CtError('PEER_REFUSED', `user ${uid} may not use the host daemon of user ${ownUid}`, {
    hint: 'every user has a daemon of their own: `ct` starts it',
  });
}
