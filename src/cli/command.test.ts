import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CtError } from '../core/errors.ts';
import { type CommandSpec, type ParsedOptions, parseCommandLine } from './command.ts';
import { COMMANDS } from './commands.ts';
import { completionScript } from './completion.ts';
import { commandHelp, overviewHelp } from './help.ts';

function parse(line: string): ParsedOptions {
  const invocation = parseCommandLine(COMMANDS, line.split(' '));
  assert.equal(invocation.type, 'command');
  return invocation.type === 'command' ? invocation.parsed : assert.fail();
}

function refusal(line: string): string {
  try {
    parseCommandLine(COMMANDS, line.split(' '));
  } catch (error) {
    assert.ok(error instanceof CtError && error.code === 'USAGE', String(error));
    assert.equal(error.exitStatus, 2);
    return `${error.message} | ${error.hint}`;
  }
  return assert.fail(`${line} was accepted`);
}

test('jobs, options in every spelling and repeated ones are read', () => {
  const parsed = parse('run build -eA=1 -e B=x=y --env=C= test --cpu 2 --memory=4G -C src --no-ignore');
  assert.deepEqual(parsed.positionals, ['build', 'test']);
  assert.deepEqual(parsed.values('env'), ['A=1', 'B=x=y', 'C=']);
  assert.equal(parsed.value('cpu'), '2');
  assert.equal(parsed.value('memory'), '4G');
  assert.equal(parsed.value('directory'), 'src');
  assert.ok(parsed.has('no-ignore'));
  assert.ok(!parsed.has('json'));
  assert.equal(parsed.passthrough, undefined);
});

test('what follows -- belongs to the command, also its options and further --', () => {
  const parsed = parse('run --json -- ls -l --help -- --json');
  assert.ok(parsed.has('json'));
  assert.deepEqual(parsed.positionals, []);
  assert.deepEqual(parsed.passthrough, ['ls', '-l', '--help', '--', '--json']);
});

test('two-word commands are found, and --help anywhere before -- asks for help', () => {
  const built = parseCommandLine(COMMANDS, ['image', 'build', 'debian-12']);
  assert.equal(built.type === 'command' && built.command.name, 'image build');
  for (const line of ['run --help', 'run build -h', 'help run', 'image ls --help', 'help image ls']) {
    const invocation = parseCommandLine(COMMANDS, line.split(' '));
    assert.equal(invocation.type, 'help', line);
  }
  for (const line of ['help image', 'image --help']) {
    assert.deepEqual(parseCommandLine(COMMANDS, line.split(' ')), {
      type: 'help',
      command: undefined,
      group: 'image',
    });
  }
  assert.equal(parseCommandLine(COMMANDS, []).type, 'help');
  assert.equal(parseCommandLine(COMMANDS, ['--version']).type, 'version');
});

test('USAGE names what is wrong and the nearest thing that would be right', () => {
  const refusals: [string, RegExp][] = [
    ['runn', /unknown command `runn` \| did you mean `run`\?/],
    ['build', /unknown command `build` \| .*ct run build/],
    ['image', /`ct image` needs a command: build, /],
    ['image bild', /unknown command `image bild` \| did you mean `image build`\?/],
    ['help docter', /did you mean `doctor`\?/],
    ['--json run', /unknown option `--json` before a command/],
    ['run --jsno', /no option `--jsno` \| did you mean `--json`\?/],
    ['run -x', /no option `-x` \| see: ct run --help/],
    ['run --json=yes', /--json takes no value/],
    ['run --cpu', /--cpu needs a value: --cpu N/],
    ['run --image=', /--image needs a value/],
    ['run --progress=plan', /--progress cannot be `plan` \| did you mean `plain`\?/],
    ['doctor now', /takes no arguments, and `now` is one/],
    ['cancel', /ct cancel needs RUN \| see: ct cancel --help/],
    ['completion bash zsh', /takes one argument, and `zsh` is one more/],
    ['doctor -- x', /takes nothing after --/],
  ];
  for (const [line, expected] of refusals) assert.match(refusal(line), expected);
});

test('every command has help with its options and examples, no wider than a terminal', () => {
  for (const command of COMMANDS) {
    const help = commandHelp(command);
    for (const { name } of command.options)
      assert.ok(help.includes(`--${name}`), `${command.name} --${name}`);
    for (const { command: line } of command.examples) assert.ok(help.includes(line));
    for (const line of help.split('\n')) assert.ok(line.length <= 100, line);
  }
  const overview = overviewHelp(COMMANDS, undefined);
  for (const { name } of COMMANDS) assert.ok(overview.includes(name));
});

test('no two options of a command share a name or a letter, and examples parse', () => {
  for (const { name, options, examples } of COMMANDS) {
    const words = options.flatMap((option) => [option.name, ...(option.short ? [option.short] : [])]);
    assert.equal(new Set(words).size, words.length, name);
    for (const { command } of examples) {
      const args = command
        .replace(/^(?:.*?[ (])??ct /, '')
        .replace(/[>)].*$/, '')
        .trim()
        .split(' ');
      parseCommandLine(COMMANDS, args);
    }
  }
});

test('completion scripts know every command and option', () => {
  const spec: CommandSpec[] = [...COMMANDS];
  for (const shell of ['bash', 'zsh', 'fish'] as const) {
    const script = completionScript(spec, shell);
    for (const { options } of spec) {
      for (const { name } of options) {
        assert.ok(script.includes(shell === 'fish' ? `-l ${name}` : `--${name}`), `${shell}: ${name}`);
      }
    }
    assert.ok(script.includes('doctor'));
  }
});
