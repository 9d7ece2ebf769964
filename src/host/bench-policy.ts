/** How long a policy of many rules takes to decide, in this process, by the engine that the daemon has. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { SourceText } from '../core/source-text.ts';
import { parsePolicyData } from '../policy/data.ts';
import { type Destination, indexDestinations } from '../policy/destination.ts';
import { loadWasmEngine } from '../policy/engine.ts';
import { type EgressInput, INPUT_VERSION } from '../policy/input.ts';
import { shippedPolicies } from './policy-source.ts';

const RULES = 10_000;
const QUESTIONS = 5000;
/** V8 compiles while these are answered. */
const WARM_UP = 500;
const NS_PER_US = 1000;

export interface PolicyFigures {
  /** In the policy, and as many of the run. */
  readonly rules: number;
  /** A question that nobody has asked before. */
  readonly firstUs: Percentiles;
  /** One that was asked before. */
  readonly againUs: Percentiles;
}

export interface Percentiles {
  readonly p50: number;
  readonly p99: number;
}

export async function measurePolicy(): Promise<PolicyFigures> {
  const names = Array.from({ length: RULES }, (_, index) => `host-${index}.bench.example`);
  const text = `version: 1
egress:
  mode: enforce
  allow: ${JSON.stringify(names)}
  block: ${JSON.stringify(names.map((name) => `blocked.${name}`))}
admission:
  trust: [local]
  repositories: ['*']
  refs: ['*']
  actors: ['*']
  images: ['*']
limits: {cpus: 1, memory: 1G, disk: 1G, timeout: 1h}
`;
  const { config } = parsePolicyData(new SourceText('bench', text), { resolvePreset: () => [] });
  const engine = await loadWasmEngine({
    wasm: readFileSync(join(shippedPolicies, 'policy.wasm')),
    config,
    revision: 'bench',
    nowNs: () => process.hrtime.bigint(),
  });
  const allow = indexDestinations(
    names.map((host): Destination => ({ rule: host, host, port: 443, protocol: 'tls', addresses: 'public' })),
  );
  const ask = (index: number): number => {
    const startedAt = process.hrtime.bigint();
    engine.decideEgress(question(index, allow));
    return Number(process.hrtime.bigint() - startedAt) / NS_PER_US;
  };
  for (let index = 0; index < WARM_UP; index++) ask(QUESTIONS + index);
  const first = Array.from({ length: QUESTIONS }, (_, index) => ask(index));
  // The last ones are still remembered.
  const again = Array.from({ length: WARM_UP }, (_, index) => ask(QUESTIONS - WARM_UP + index));
  return { rules: RULES, firstUs: percentiles(first), againUs: percentiles(again) };
}

/** Half of them are about names that a rule allows. */
function question(index: number, allow: EgressInput['network']['allow']): EgressInput {
  const name = `host-${index}.bench.example`;
  return {
    version: INPUT_VERSION,
    run: { job: 'bench', trust: 'local' },
    network: { mode: 'enforce', allow },
    request: {
      kind: 'connect',
      host: index % 2 === 0 ? name : `not.${name}`,
      port: 443,
      literal: false,
    },
  };
}

function percentiles(samples: readonly number[]): Percentiles {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (percent: number): number =>
    Math.round((sorted[Math.ceil((percent / 100) * sorted.length) - 1] ?? Number.NaN) * 10) / 10;
  return { p50: at(50), p99: at(99) };
}
