/** Configuration files: one YAML document against one schema. */
import { type Problem, parseYaml, problemsError, type SourceText } from '../../core/yaml-source.ts';
import { Locations, type Schema } from './schema.ts';

/** Undefined if there is nothing in it. Throws CONFIG_INVALID with every problem at its line and column. */
export function parseConfig<T>(schema: Schema<T>, source: SourceText): T | undefined {
  const { root, problems: syntax } = parseYaml(source, 'CONFIG_INVALID');
  const problems: Problem[] = [...syntax];
  if (problems.length === 0 && (root === undefined || (root.kind === 'scalar' && root.type === 'null'))) {
    return undefined;
  }
  const config =
    root && problems.length === 0
      ? schema.parse(root, {
          locations: new Locations(),
          report: (problem) => problems.push({ ...problem, code: 'CONFIG_INVALID' }),
        })
      : undefined;
  if (config === undefined || problems.length > 0) throw problemsError(problems, 'CONFIG_INVALID');
  return config;
}
