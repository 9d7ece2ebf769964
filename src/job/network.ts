/** The `network:` block of a job file, and `--network` of the command line, which speak of the same things. */

import { didYouMean } from '../core/suggest.ts';
import { isPresetName, PRESET_NAMES } from '../egress/presets/names.ts';
import { parseDestination } from '../policy/destination.ts';
import type { NetworkRequest } from '../protocol/network.ts';
import type { NetworkSpec } from './definition.ts';

/** What is wrong with an entry of `allow`; undefined if nothing is. */
export function wrongDestination(
  text: string,
): { readonly wrong: string; readonly hint?: string | undefined } | undefined {
  const parsed = parseDestination(text);
  if ('wrong' in parsed) return parsed;
  if (parsed.kind !== 'preset' || isPresetName(parsed.name)) return undefined;
  return {
    wrong: `there is no network preset \`${parsed.name}\``,
    hint:
      didYouMean(parsed.name, PRESET_NAMES) ??
      `the presets are ${PRESET_NAMES.map((name) => `\`${name}\``).join(', ')}; a host has a dot in its name or a scheme: \`https://${parsed.name}\``,
  };
}

/** What is sent to the host; undefined: no network. */
export function networkRequest(spec: NetworkSpec | undefined): NetworkRequest | undefined {
  if (spec === undefined || spec === 'none') return undefined;
  if (isList(spec)) return { allow: distinct(spec) };
  return { allow: distinct(spec.allow ?? []), ...(spec.mode === undefined ? {} : { mode: spec.mode }) };
}

/** What `--network` makes of it: other destinations, the same mode. */
export function overridden(
  request: NetworkRequest | undefined,
  override: 'none' | readonly string[] | undefined,
): NetworkRequest | undefined {
  if (override === undefined) return request;
  return override === 'none' ? undefined : { ...request, allow: distinct(override) };
}

function distinct(entries: readonly string[]): readonly string[] {
  return [...new Set(entries)];
}

/** Array.isArray does not narrow readonly arrays. */
function isList(spec: NetworkSpec): spec is readonly string[] {
  return Array.isArray(spec);
}
