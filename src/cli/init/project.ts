/** `ct init`: a job file that fits the repository. */
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { CtError, messageOf } from '../../core/errors.ts';
import { PRESETS } from '../../egress/presets/names.ts';
import { detectTools, type Tool, type ToolKind } from './detect.ts';

/** Image of a repository that needs more than the default one has; the user writes its definition. */
const IMAGE_NAME = 'ci';

const JOB_IDS: Readonly<Record<ToolKind, string>> = {
  npm: 'node',
  cargo: 'rust',
  go: 'go',
  python: 'python',
  make: 'make',
};

export interface InitOptions {
  readonly directory: string;
  /** Replace a job file that exists. */
  readonly force: boolean;
}

export interface InitResult {
  /** Absolute path of the file written. */
  readonly path: string;
  readonly content: string;
  /** What was recognised, e.g. `npm (package.json)`. */
  readonly detected: readonly string[];
}

/**
 * Writes `ct.yml` into `directory`. Throws USAGE if there is one already and `force` is not given, or if the
 * directory cannot be read or written.
 */
export function initProject(options: InitOptions): InitResult {
  const directory = resolve(options.directory);
  const path = join(directory, 'ct.yml');
  try {
    if (!options.force && hasJobFile(directory)) {
      throw new CtError('USAGE', `${directory} has a job file already`, { hint: '--force replaces ct.yml' });
    }
    const tools = detectTools(directory);
    const content = jobFileFor(tools);
    writeFileSync(path, content, { flag: options.force ? 'w' : 'wx' });
    return { path, content, detected: tools.map((tool) => `${tool.kind} (${tool.file})`) };
  } catch (error) {
    if (error instanceof CtError) throw error;
    throw new CtError('USAGE', `cannot write ${path}: ${messageOf(error)}`, { cause: error });
  }
}

function hasJobFile(directory: string): boolean {
  if (existsSync(join(directory, 'ct.yml'))) return true;
  const more = join(directory, '.ct');
  return existsSync(more) && readdirSync(more).some((name) => name.endsWith('.yml'));
}

/** The text of a job file for these tools; for none, one to start from. */
export function jobFileFor(tools: readonly Tool[]): string {
  const images = new Set(tools.length === 0 ? (['debian-12'] as const) : tools.map(imageOf));
  const lines = [
    '# Jobs of this repository, for ct: each runs in a microVM of its own. `ct run JOB` runs one here.',
    '# All keys: docs/job-file.md of ct.',
    'version: 1',
    '',
    'defaults:',
    '  # `image` is what is installed in the VM. Jobs cannot install more: the system is read-only.',
    ...definitionLines(tools.filter((tool) => imageOf(tool) === IMAGE_NAME)),
    ...(images.size === 1 ? [`  image: ${[...images][0]}`] : []),
    '  resources:',
    '    cpu: 1',
    '    memory: 2G # M is MiB, G is GiB',
    '  timeout: 30m',
    '',
    'jobs:',
  ];
  if (tools.length === 0) lines.push(...sampleJob());
  for (const [index, tool] of tools.entries()) {
    if (index > 0) lines.push('');
    const id = tools.length === 1 ? 'build' : JOB_IDS[tool.kind];
    lines.push(...jobLines(id, tool, images.size === 1 ? [] : [`    image: ${imageOf(tool)}`]));
  }
  return `${lines.join('\n')}\n`;
}

const imageOf = ({ image, packages }: Tool): Tool['image'] | typeof IMAGE_NAME =>
  packages.length === 0 ? image : IMAGE_NAME;

/** How to define the image of the user; for no tools, how to have one at all. */
function definitionLines(tools: readonly Tool[]): string[] {
  if (tools.length === 0) {
    return [
      '  # For more packages write .ct/images/NAME.yml with `version: 1`, `extends: debian-12` (or node, python)',
      '  # and `packages: […]`.',
    ];
  }
  const bases = new Set(tools.map((tool) => tool.image));
  const keys = tools.flatMap((tool) => tool.keys ?? []);
  return [
    `  # The image \`${IMAGE_NAME}\` is yours to define. Write .ct/images/${IMAGE_NAME}.yml with:`,
    '  #',
    '  #   version: 1',
    // debian-12 has Python, too.
    `  #   extends: ${bases.size === 1 ? [...bases][0] : 'debian-12'}`,
    `  #   packages: [${tools.flatMap((tool) => tool.packages).join(', ')}]`,
    ...(keys.length === 0 ? [] : ['  #   holds:', `  #     keys: [${keys.join(', ')}]`]),
  ];
}

function jobLines(id: string, tool: Tool, image: readonly string[]): string[] {
  return [
    ...tool.notes.map((note) => `  # ${note}`),
    `  ${id}:`,
    ...image,
    ...networkLines(tool),
    '    steps:',
    ...tool.steps.flatMap((step) => [`      - name: ${step.name}`, `        run: ${step.run}`]),
    `    # Files to keep; they land in .ct/out/${id}.`,
    '    # artifacts:',
    '    #   paths: [dist]',
  ];
}

/** What the job may connect to. Without one it has no network. */
function networkLines({ network }: Tool): string[] {
  if (network === undefined) return [];
  return [
    `    # The job reaches ${PRESETS[network]}, as this host is configured, and nothing else.`,
    '    # Further hosts by name, such as "https://api.example.com". `network: none` in a step takes it away there.',
    `    network: [${network}]`,
  ];
}

function sampleJob(): string[] {
  return [
    '  build:',
    '    steps:',
    '      - name: look around',
    '        run: |',
    '          uname -a',
    '          ls -la',
    '      # Runs whether the steps before it failed or not; also success() and failure().',
    '      - name: always last',
    '        if: always()',
    '        run: echo done',
    '    # What the job may connect to; nothing if it is absent. docs/network.md of ct has the presets.',
    '    # network: [npm, "https://api.example.com"]',
    '    # Files to keep; they land in .ct/out/build.',
    '    # artifacts:',
    '    #   paths: [dist]',
    '',
    '  # A job that waits for another, once per value of `suite`:',
    '  # test:',
    '  #   needs: build',
    '  #   matrix:',
    '  #     suite: [unit, integration]',
    '  #   steps:',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: an expression of the job file
    '  #     - run: ./run-tests ${{ matrix.suite }}',
  ];
}
