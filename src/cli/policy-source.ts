/** Finds where a rule stands that decided: in the Rego that is shipped or the operator's, and in the policy data. */
import { readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { installRoot } from '../core/install.ts';
import { parseYaml, readSource, type SourceText, type YamlNode } from '../core/yaml-source.ts';
import type { Denial } from '../policy/decision.ts';
import type { Place } from './render/policy.ts';

/** As the daemon reads them. */
const MAX_SOURCE_BYTES = 4 * 1024 * 1024;
const MAX_FILES = 1000;
/** Rules that follow one entry of a list in the policy data, which their message ends with in brackets. */
const LISTS: Readonly<Record<string, string>> = { 'ct.egress.banned': 'ban', 'ct.egress.blocked': 'block' };

const shippedPolicies: string = join(installRoot, 'policies');

export class PolicySources {
  readonly #rego: readonly SourceText[];
  readonly #data: SourceText | undefined;

  /** `directory`: the operator's; undefined if there is none. What cannot be read is not found, nothing else. */
  constructor(directory: string | undefined) {
    this.#rego = [directory, join(shippedPolicies, 'ct')].flatMap((root) =>
      root === undefined ? [] : regoBelow(root),
    );
    this.#data =
      directory === undefined
        ? read(join(shippedPolicies, 'default.yml'))
        : (read(join(directory, 'data.yml')) ?? read(join(directory, 'data.json')));
  }

  /** Where Rego names the rule first. */
  ruleOf({ rule }: Denial): Place | undefined {
    for (const source of this.#rego) {
      const offset = source.text.indexOf(JSON.stringify(rule));
      if (offset >= 0) return placeOf(source, offset);
    }
    return undefined;
  }

  /** The entry of the policy data that forbids it, if the rule follows one. */
  entryOf({ rule, message }: Denial): Place | undefined {
    const list = Object.hasOwn(LISTS, rule) ? LISTS[rule] : undefined;
    const entry = /\(([^()]+)\)$/.exec(message)?.[1];
    if (list === undefined || entry === undefined || !this.#data) return undefined;
    const { root } = parseYaml(this.#data, 'POLICY_INVALID');
    const node = member(member(root, 'egress'), list);
    if (node?.kind !== 'list') return undefined;
    const item = node.items.find((one) => one.kind === 'scalar' && one.text === entry);
    return item && placeOf(this.#data, item.span.start);
  }
}

function regoBelow(root: string): SourceText[] {
  try {
    return readdirSync(root, { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.rego') && !name.endsWith('_test.rego'))
      .sort()
      .slice(0, MAX_FILES)
      .flatMap((name) => read(join(root, name)) ?? []);
  } catch {
    return [];
  }
}

function read(path: string): SourceText | undefined {
  const name = path.startsWith(`${installRoot}/`) ? relative(installRoot, path) : path;
  try {
    return readSource(path, name, {
      maxBytes: MAX_SOURCE_BYTES,
      code: 'POLICY_INVALID',
      missingCode: 'POLICY_INVALID',
    });
  } catch {
    return undefined;
  }
}

function placeOf(source: SourceText, offset: number): Place {
  return { file: source.name, line: source.position(offset).line };
}

function member(node: YamlNode | undefined, key: string): YamlNode | undefined {
  return node?.kind === 'map' ? node.entries.find((entry) => entry.key === key)?.value : undefined;
}
