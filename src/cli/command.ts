/** The declarative form of a command, and the parser that follows it. */
import { parseArgs } from 'node:util';
import { CtError } from '../core/errors.ts';
import { didYouMean, nearest } from '../core/suggest.ts';
import type { Output } from './output.ts';

export interface OptionSpec {
  readonly name: string;
  readonly short?: string;
  /** Placeholder of the value; absent for a flag. */
  readonly value?: string;
  readonly repeat?: boolean;
  readonly choices?: readonly string[];
  /** What completion offers where other values may be given, too. */
  readonly suggestions?: readonly string[];
  readonly help: string;
}

export interface CommandSpec {
  /** One or two words: `run`, `image build`. */
  readonly name: string;
  readonly summary: string;
  /** Paragraphs. */
  readonly description: readonly string[];
  readonly positionals?: {
    readonly placeholder: string;
    readonly max: number;
    /** How many there must be; 0 if absent. */
    readonly min?: number;
    readonly help: string;
    readonly choices?: readonly string[];
  };
  /** What may follow `--`, untouched. */
  readonly passthrough?: { readonly placeholder: string; readonly help: string };
  readonly options: readonly OptionSpec[];
  readonly examples: readonly { readonly command: string; readonly what: string }[];
  readonly load: () => Promise<CommandModule>;
}

export interface CommandModule {
  /** Returns the exit status. */
  readonly run: (parsed: ParsedOptions, output: Output) => Promise<number>;
}

export class ParsedOptions {
  readonly positionals: readonly string[];
  /** What followed `--`; undefined if there was none. */
  readonly passthrough: readonly string[] | undefined;
  readonly #values: ReadonlyMap<string, readonly string[]>;

  constructor(
    positionals: readonly string[],
    passthrough: readonly string[] | undefined,
    values: ReadonlyMap<string, readonly string[]>,
  ) {
    this.positionals = positionals;
    this.passthrough = passthrough;
    this.#values = values;
  }

  has(option: string): boolean {
    return this.#values.has(option);
  }

  /** The last value given. */
  value(option: string): string | undefined {
    return this.#values.get(option)?.at(-1);
  }

  values(option: string): readonly string[] {
    return this.#values.get(option) ?? [];
  }
}

export type Invocation =
  | { readonly type: 'command'; readonly command: CommandSpec; readonly parsed: ParsedOptions }
  /** Of one command, of a group such as `image`, or of everything. */
  | { readonly type: 'help'; readonly command: CommandSpec | undefined; readonly group: string | undefined }
  | { readonly type: 'version' };

/** What the command line asks for. Throws USAGE with the nearest known word as hint. */
export function parseCommandLine(commands: readonly CommandSpec[], args: readonly string[]): Invocation {
  const [first, second] = args;
  if (first === undefined || first === '--help' || first === '-h') {
    return { type: 'help', command: undefined, group: undefined };
  }
  if (first === '--version' || first === '-V') return { type: 'version' };
  if (first === 'help') return helpFor(commands, args.slice(1));
  if (first.startsWith('-')) {
    throw usage(
      `unknown option ${quote(first)} before a command`,
      'options of a command follow it: ct run --json build',
    );
  }
  const group = commands.filter(({ name }) => name.startsWith(`${first} `));
  if (group.length > 0) {
    if (second === '--help' || second === '-h') return { type: 'help', command: undefined, group: first };
    const words = group.map(({ name }) => name.slice(first.length + 1));
    if (second === undefined) {
      throw usage(`${quote(`ct ${first}`)} needs a command: ${words.join(', ')}`, `see: ct help ${first}`);
    }
    const command = group.find(({ name }) => name === `${first} ${second}`);
    if (!command) {
      const guess = nearest(second, words);
      throw usage(
        `unknown command ${quote(`${first} ${second}`)}`,
        guess === undefined
          ? `there are: ${words.join(', ')}`
          : `did you mean ${quote(`${first} ${guess}`)}?`,
      );
    }
    return parseOptions(command, args.slice(2));
  }
  const command = commands.find(({ name }) => name === first);
  if (!command) {
    const known = [...new Set(commands.map(({ name }) => name.split(' ')[0] ?? name))];
    const guess = didYouMean(first, known);
    throw usage(`unknown command ${quote(first)}`, guess ?? `a job is run by: ct run ${first}; see: ct help`);
  }
  return parseOptions(command, args.slice(1));
}

function helpFor(commands: readonly CommandSpec[], words: readonly string[]): Invocation {
  const topic = words.filter((word) => !word.startsWith('-')).join(' ');
  if (topic === '') return { type: 'help', command: undefined, group: undefined };
  const command = commands.find(({ name }) => name === topic);
  if (command) return { type: 'help', command, group: undefined };
  if (commands.some(({ name }) => name.startsWith(`${topic} `))) {
    return { type: 'help', command: undefined, group: topic };
  }
  const names = commands.map(({ name }) => name);
  throw usage(`there is no command ${quote(topic)} to help with`, didYouMean(topic, names) ?? 'see: ct help');
}

function parseOptions(command: CommandSpec, args: readonly string[]): Invocation {
  const byName = new Map(command.options.map((option) => [option.name, option]));
  const { tokens } = parseArgs({
    args: [...args],
    strict: false,
    tokens: true,
    options: Object.fromEntries([
      ['help', { type: 'boolean', short: 'h' }],
      ...command.options.map(({ name, short, value }) => [
        name,
        { type: value === undefined ? 'boolean' : 'string', multiple: true, ...(short ? { short } : {}) },
      ]),
    ]),
  });

  const values = new Map<string, string[]>();
  const positionals: string[] = [];
  let passthrough: string[] | undefined;
  for (const token of tokens) {
    if (token.kind === 'option-terminator') {
      passthrough = args.slice(token.index + 1);
      break;
    }
    if (token.kind === 'positional') {
      positionals.push(token.value);
      continue;
    }
    if (token.name === 'help') return { type: 'help', command, group: undefined };
    const option = byName.get(token.name);
    if (!option) throw unknownOption(command, token.rawName);
    checkValue(option, token.rawName, token.value);
    const given = values.get(option.name) ?? [];
    given.push(token.value ?? '');
    values.set(option.name, given);
  }

  const max = command.positionals?.max ?? 0;
  const extra = positionals[max];
  if (extra !== undefined) {
    throw usage(
      max === 0
        ? `ct ${command.name} takes no arguments, and ${quote(extra)} is one`
        : `ct ${command.name} takes ${max === 1 ? 'one argument' : `${max} arguments`}, and ${quote(extra)} is one more`,
      `see: ct ${command.name} --help`,
    );
  }
  const { min = 0, placeholder = '' } = command.positionals ?? {};
  if (positionals.length < min) {
    throw usage(`ct ${command.name} needs ${placeholder}`, `see: ct ${command.name} --help`);
  }
  if (passthrough && !command.passthrough) {
    throw usage(`ct ${command.name} takes nothing after --`, `see: ct ${command.name} --help`);
  }
  return { type: 'command', command, parsed: new ParsedOptions(positionals, passthrough, values) };
}

function checkValue(option: OptionSpec, rawName: string, value: string | undefined): void {
  if (option.value === undefined) {
    if (value !== undefined) throw usage(`${rawName} takes no value`, `write ${rawName} alone`);
    return;
  }
  if (value === undefined || value === '') {
    throw usage(`${rawName} needs a value: ${rawName} ${option.value}`, option.help);
  }
  if (option.choices && !option.choices.includes(value)) {
    throw usage(
      `${rawName} cannot be ${quote(value)}`,
      didYouMean(value, option.choices) ?? `it is one of: ${option.choices.join(', ')}`,
    );
  }
}

function unknownOption(command: CommandSpec, rawName: string): CtError {
  const known = ['--help', ...command.options.map(({ name }) => `--${name}`)];
  const guess = rawName.startsWith('--') ? didYouMean(rawName, known) : undefined;
  return usage(
    `ct ${command.name} has no option ${quote(rawName)}`,
    guess ?? `see: ct ${command.name} --help`,
  );
}

function usage(message: string, hint: string): CtError {
  return new CtError('USAGE', message, { hint });
}

function quote(word: string): string {
  return `\`${word}\``;
}
