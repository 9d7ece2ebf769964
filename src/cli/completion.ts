/** Completion scripts, made from the command table. Pure. */
import type { CommandSpec, OptionSpec } from './command.ts';

export type Shell = 'bash' | 'zsh' | 'fish';

/** Names of jobs come from `ct run -l` itself, so that they follow the directory one is in. */
const LIST_JOBS = `ct run --list 2>/dev/null | awk 'NR > 1 { print $1 }'`;
/** Ids of runs; their jobs' names are on the same lines, but a job has many runs. */
const LIST_RUNS = `ct ps --all 2>/dev/null | awk 'NR > 1 { print $1 }'`;

/** The shell command that lists what an argument of this command may be. */
function lister(command: CommandSpec): string | undefined {
  if (command.name === 'run') return LIST_JOBS;
  return command.positionals?.placeholder === 'RUN' ? LIST_RUNS : undefined;
}

export function completionScript(commands: readonly CommandSpec[], shell: Shell): string {
  if (shell === 'fish') return fishScript(commands);
  return shell === 'bash' ? bashScript(commands) : zshScript(commands);
}

function firstWords(commands: readonly CommandSpec[]): string[] {
  return [...new Set([...commands.map(({ name }) => name.split(' ')[0] ?? ''), 'help'])];
}

function groups(commands: readonly CommandSpec[]): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const { name } of commands) {
    const [first = '', second] = name.split(' ');
    if (second !== undefined) found.set(first, [...(found.get(first) ?? []), second]);
  }
  return found;
}

function words(command: CommandSpec): string {
  return [
    ...command.options.flatMap(({ name, short }) => [`--${name}`, ...(short ? [`-${short}`] : [])]),
    '--help',
    ...(command.positionals?.choices ?? []),
  ].join(' ');
}

function bashScript(commands: readonly CommandSpec[]): string {
  const valueCases = allOptions(commands)
    .filter(({ value }) => value !== undefined)
    .map(({ name, short, value, suggestions, choices = suggestions }) => {
      const names = `${short ? `-${short}|` : ''}--${name}`;
      const compgen = choices
        ? `compgen -W '${choices.join(' ')}' -- "$word"`
        : value === 'DIR'
          ? 'compgen -d -- "$word"'
          : value === 'FILE'
            ? 'compgen -f -- "$word"'
            : 'true';
      return `    ${names}) COMPREPLY=($(${compgen})); return ;;`;
    });
  const groupCases = [...groups(commands)].map(
    ([first, seconds]) =>
      `    ${first}) COMPREPLY=($(compgen -W '${seconds.join(' ')}' -- "$word")); return ;;`,
  );
  const optionCases = commands.map((command) => {
    const list = lister(command);
    const listed = list === undefined ? '' : ` $(${list})`;
    return `    '${command.name}'|'${command.name} '*) COMPREPLY=($(compgen -W "${words(command)}${listed}" -- "$word")) ;;`;
  });
  return `# bash completion of ct; source it, or put it into ~/.bashrc
_ct() {
  local word=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]}
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '${firstWords(commands).join(' ')} --help --version' -- "$word"))
    return
  fi
  case $previous in
${valueCases.join('\n')}
  esac
  if [ "$COMP_CWORD" -eq 2 ]; then
    case \${COMP_WORDS[1]} in
${groupCases.map((line) => `  ${line}`).join('\n')}
    help) COMPREPLY=($(compgen -W '${firstWords(commands).join(' ')}' -- "$word")); return ;;
    esac
  fi
  case "\${COMP_WORDS[*]:1:COMP_CWORD-1}" in
${optionCases.join('\n')}
  esac
}
complete -o default -F _ct ct
`;
}

function zshScript(commands: readonly CommandSpec[]): string {
  // zsh runs bash completions as they are; one script for both cannot differ.
  return `# zsh completion of ct; source it after compinit
autoload -U +X bashcompinit && bashcompinit
${bashScript(commands).split('\n').slice(1).join('\n')}`;
}

function fishScript(commands: readonly CommandSpec[]): string {
  const lines = ['# fish completion of ct', 'complete -c ct -f'];
  for (const word of firstWords(commands)) {
    const summary = commands.find(({ name }) => name === word)?.summary;
    lines.push(
      `complete -c ct -n __fish_use_subcommand -a ${word}${summary ? ` -d ${quoted(summary)}` : ''}`,
    );
  }
  for (const command of commands) {
    const [first = '', second] = command.name.split(' ');
    const seen = [first, ...(second ? [second] : [])]
      .map((word) => `__fish_seen_subcommand_from ${word}`)
      .join('; and ');
    if (second) {
      lines.push(
        `complete -c ct -n '__fish_seen_subcommand_from ${first}' -a ${second} -d ${quoted(command.summary)}`,
      );
    }
    for (const { name, short, value, suggestions, choices = suggestions, help } of command.options) {
      const takes = value === undefined ? '' : value === 'DIR' || value === 'FILE' ? ' -r -F' : ' -r';
      const values = choices ? ` -a '${choices.join(' ')}'` : '';
      lines.push(
        `complete -c ct -n '${seen}' -l ${name}${short ? ` -s ${short}` : ''}${takes}${values} -d ${quoted(help)}`,
      );
    }
    if (command.positionals?.choices) {
      lines.push(`complete -c ct -n '${seen}' -a '${command.positionals.choices.join(' ')}'`);
    }
    const list = lister(command);
    if (list !== undefined) lines.push(`complete -c ct -n '${seen}' -a ${quoted(`(${list})`)}`);
  }
  return `${lines.join('\n')}\n`;
}

function allOptions(commands: readonly CommandSpec[]): OptionSpec[] {
  const byName = new Map(commands.flatMap(({ options }) => options).map((option) => [option.name, option]));
  return [...byName.values()];
}

function quoted(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}
