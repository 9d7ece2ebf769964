/** What was learned, given back to the policy that ct ships: it allows what was seen, and nothing beside it. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { type LoadedPolicySource, loadPolicy } from '../../src/host/policy-source.ts';
import type { EgressDecision } from '../../src/policy/decision.ts';
import { indexDestinations, parseDestination } from '../../src/policy/destination.ts';
import type { DestinationIndex, EgressRequest } from '../../src/policy/input.ts';
import { learnNetwork } from '../../src/policy/learn.ts';
import type { NetworkMode } from '../../src/protocol/network.ts';
import { scratchDirectory } from '../support/scratch.ts';

let policy: LoadedPolicySource;
const scratch = scratchDirectory();
before(async () => {
  policy = await loadPolicy(undefined, { ctHome: scratch.path, env: {}, resolvePresets: async () => [] });
});
after(() => {
  policy[Symbol.dispose]();
  scratch[Symbol.dispose]();
});

async function decide(
  request: EgressRequest,
  mode: NetworkMode,
  allow: DestinationIndex,
): Promise<EgressDecision> {
  const run = { id: 'r1', job: 'build', trust: 'local' } as const;
  const { decision } = await policy.engine.decideEgress({
    version: 1,
    run,
    network: { mode, allow },
    request,
  });
  return decision;
}

const place = (host: string, port: number, literal = false) => ({ host, port, literal });
const dns = (name: string): EgressRequest => ({ kind: 'dns', name, type: 'A' });
const connect = (...at: Parameters<typeof place>): EgressRequest => ({ kind: 'connect', ...place(...at) });
const tls = (host: string, port = 443): EgressRequest => ({
  kind: 'stream',
  ...place(host, port),
  protocol: 'tls',
  sni: host,
  ech: false,
});
const http = (host: string): EgressRequest => ({
  kind: 'stream',
  ...place(host, 80),
  protocol: 'http',
  http_host: host,
});
const spoken = (host: string, port: number, protocol: 'ssh' | 'unknown', literal = false): EgressRequest => ({
  kind: 'stream',
  ...place(host, port, literal),
  protocol,
});

const SEEN: readonly EgressRequest[] = [
  dns('a.example.org'),
  connect('a.example.org', 443),
  tls('a.example.org'),
  connect('a.example.org', 8443),
  tls('a.example.org', 8443),
  connect('b.example.org', 80),
  http('b.example.org'),
  connect('git.example.org', 22),
  spoken('git.example.org', 22, 'ssh'),
  connect('db.example.org', 5432),
  spoken('db.example.org', 5432, 'unknown'),
  connect('192.0.2.7', 443, true),
  spoken('192.0.2.7', 443, 'unknown', true),
];
const BESIDE: readonly EgressRequest[] = [
  dns('c.example.org'),
  dns('example.org'),
  connect('a.example.org', 80),
  connect('b.example.org', 443),
  spoken('a.example.org', 443, 'unknown'),
  { ...tls('a.example.org'), sni: 'b.example.org' } as EgressRequest,
  connect('192.0.2.7', 80, true),
  connect('192.0.2.8', 443, true),
];

for (const mode of ['audit', 'enforce', 'terminate'] as const) {
  test(`what a run in mode ${mode} was denied is allowed by what was learned from it, and nothing beside it`, async () => {
    const nothing = indexDestinations([]);
    const observations = [];
    for (const request of SEEN) {
      const decision = await decide(request, mode, nothing);
      assert.ok(decision.denial, 'nothing was allowed before');
      const run = { job: 'build', trust: 'local' } as const;
      const input = { version: 1, run, network: { mode, allow: nothing }, request } as const;
      observations.push({ input, decision, count: 1 });
    }
    const { allow, left } = learnNetwork(observations);
    assert.deepEqual(left, []);
    const learned = indexDestinations(
      allow.flatMap(({ entry }) => {
        const parsed = parseDestination(entry);
        assert.ok('kind' in parsed && parsed.kind === 'destinations', entry);
        return parsed.destinations;
      }),
    );
    for (const request of SEEN) {
      const { action, denial } = await decide(request, 'enforce', learned);
      assert.deepEqual([action, denial], ['allow', undefined], JSON.stringify(request));
    }
    for (const request of BESIDE) {
      assert.equal((await decide(request, 'enforce', learned)).action, 'deny', JSON.stringify(request));
    }
  });
}

test('what the shipped policy blocks is not learned', async () => {
  const request = connect('169.254.169.254', 80, true);
  const decision = await decide(request, 'audit', indexDestinations([]));
  assert.equal(decision.action, 'deny');
  const run = { job: 'build', trust: 'local' } as const;
  const network = { mode: 'audit', allow: indexDestinations([]) } as const;
  const learned = learnNetwork([{ input: { version: 1, run, network, request }, decision, count: 1 }]);
  assert.deepEqual(learned.allow, []);
  assert.equal(learned.left.length, 1);
});
