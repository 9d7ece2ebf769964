/** What the CLI makes of a connection whose other end, the link process, was taken over by its guest. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { socketDirectory } from '../../src/core/paths.ts';
import { API_INFO, JOB_PROTOCOL } from '../../src/host/api.ts';
import { findHost, type HostClient } from '../../src/host/client.ts';
import { encodeRecord } from '../../src/protocol/records.ts';
import { type JobRequest, ServerRecord } from '../../src/protocol/run.ts';
import { imageOf, peakMib } from '../support/hostile-host.ts';
import { type Scratch, scratchDirectory } from '../support/scratch.ts';

/** Both ends are in this process. */
const MAX_GROWTH_MIB = 128;

let scratch: Scratch;
let sockets: string;
let client: HostClient;
let answer: (socket: Socket) => void;
const server = createServer((request, response) => {
  response.writeHead(request.url === API_INFO ? 200 : 404).end('{}');
});
server.on('upgrade', (_, socket: Socket) => {
  socket.on('error', () => {});
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${JOB_PROTOCOL}\r\n\r\n`);
  answer(socket);
});

before(async () => {
  scratch = scratchDirectory();
  sockets = await socketDirectory(scratch.path);
  await new Promise<void>((resolve) => server.listen(join(sockets, 'host.sock'), resolve));
  const found = await findHost(scratch.path);
  assert.ok(found);
  client = found;
});
after(() => {
  server.close();
  rmSync(sockets, { recursive: true, force: true });
  scratch[Symbol.dispose]();
});

const request: JobRequest = {
  name: 'job',
  image: imageOf('none'),
  cpus: 1,
  memoryMib: 256,
  diskMib: 64,
  env: {},
  steps: [],
  timeoutMs: 1000,
  artifacts: [],
  sendsTree: false,
};

function flood(socket: Socket, part: Buffer): void {
  const more = (): void => {
    while (!socket.destroyed && socket.write(part));
  };
  socket.on('drain', more);
  more();
}

const event = (json: string): Buffer => encodeRecord(ServerRecord.event, json);

for (const [what, attack, code] of [
  ['an event that is not JSON', (s) => s.write(event('{')), 'HOST_PROTOCOL'],
  ['an event that is null', (s) => s.write(event('null')), 'HOST_PROTOCOL'],
  ['an event without end', (s) => flood(s, event(`"${'a'.repeat(65_535)}`)), 'HOST_PROTOCOL'],
  ['output that is too short', (s) => s.write(encodeRecord(ServerRecord.stdout, 'x')), 'HOST_PROTOCOL'],
  ['a record of unknown type', (s) => s.write(encodeRecord(0x99)), 'HOST_PROTOCOL'],
  ['a record of 4 GiB', (s) => s.write(Buffer.alloc(64, 0xff)), 'GUEST_PROTOCOL'],
  [
    'artifacts that nobody asked for',
    (s) => flood(s, encodeRecord(ServerRecord.artifacts, Buffer.alloc(32_768))),
    'ended',
  ],
  ['nothing', (s) => s.end(), 'LINK_DIED'],
] as const satisfies readonly (readonly [string, (socket: Socket) => unknown, string])[]) {
  test(`${what} ends with ${code}, in bounded memory`, async () => {
    const beforeMib = peakMib(process.pid);
    answer = (socket) => {
      attack(socket);
      if (code === 'ended') setTimeout(() => socket.destroy(), 1000);
    };
    const controller = new AbortController();
    const job = client.runJob(request, {
      onEvent: () => {},
      onOutput: () => {},
      signal: controller.signal,
    });
    await assert.rejects(job, { code: code === 'ended' ? 'LINK_DIED' : code });
    assert.ok(peakMib(process.pid) - beforeMib < MAX_GROWTH_MIB);
  });
}
