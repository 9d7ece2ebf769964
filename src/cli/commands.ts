/** Every command of the CLI. `--help`, completion and docs/cli.md are made from this table. */
import { PRESET_NAMES } from '../egress/presets/names.ts';
import type { CommandSpec } from './command.ts';

const JSON_OPTION = { name: 'json', help: 'print one JSON document on stdout' } as const;
const DIRECTORY_OPTION = {
  name: 'directory',
  short: 'C',
  value: 'DIR',
  help: 'project directory, instead of the current one',
} as const;
const RUN_HELP = 'a run: its id or a part that only it begins or ends with, its job, or `latest`';
const RUN_HELP_OR_LATEST = `${RUN_HELP}; \`latest\` if absent`;

/** Whose signatures of images are accepted (image-signers.ts). */
const SIGNER_OPTIONS = [
  { name: 'key', value: 'FILE', repeat: true, help: 'public key (PEM) whose signature is accepted' },
  {
    name: 'identity',
    value: 'SUBJECT',
    repeat: true,
    help: 'identity of a certificate that is accepted, exact, or with `*` for one name; needs --issuer and --trusted-root',
  },
  { name: 'issuer', value: 'URL', help: 'who vouched for the identity' },
  { name: 'trusted-root', value: 'FILE', help: 'trusted_root.json of the Sigstore instance' },
] as const;

/** Who signs (signer.ts). */
const SIGN_OPTIONS = [
  { name: 'key', value: 'FILE', help: 'private key (PKCS#8, PEM)' },
  { name: 'passphrase-file', value: 'FILE', help: 'file with the passphrase of an encrypted key' },
  {
    name: 'key-command',
    value: 'NAME',
    help: 'signing command of your configuration, such as one that asks a key management service',
  },
  { name: 'identity-token', value: 'FILE', help: 'file with an OIDC token of audience sigstore' },
  {
    name: 'signing-config',
    value: 'FILE',
    help: 'signing_config.json: the services that certify, log and timestamp; needed with --identity-token',
  },
] as const;

const JOBS_OPTIONS = [
  { name: 'jobs', short: 'n', value: 'N', help: 'how many jobs; 100 if absent' },
  { name: 'parallel', short: 'j', value: 'J', help: 'how many at a time; 4 if absent' },
  { name: 'image', value: 'IMAGE', help: 'image to run in; debian-12 if absent' },
  JSON_OPTION,
] as const;

const PLOT_OPTION = {
  name: 'plot',
  value: 'FILE',
  help: 'write a bar plot to FILE, an SVG with the VMM, the accelerator, the date and the CPU of this machine',
} as const;

export const COMMANDS: readonly CommandSpec[] = [
  {
    name: 'run',
    summary: 'run jobs, or one command, each in a microVM of its own',
    description: [
      'Runs the named jobs of ct.yml and what they need; without a name, every job. The working tree goes into the VM without what git ignores; artifacts come back to .ct/out/JOB.',
      'With -- it runs one command in the current tree instead, and is as quiet as the command itself: stdin, stdout, stderr and the exit status are those of the command.',
      'What a job writes goes to stdout and stderr as it wrote it; lines of ct go to stderr.',
    ],
    positionals: { placeholder: 'JOB', max: Number.POSITIVE_INFINITY, help: 'job of ct.yml' },
    passthrough: { placeholder: 'CMD ARGS', help: 'command to run instead of jobs' },
    options: [
      { name: 'image', value: 'IMAGE', help: 'image to run in, over what the job says' },
      {
        name: 'locked',
        help: 'fail with IMAGE_LOCK_STALE rather than run in an image with other packages than those of its lock',
      },
      { name: 'cpu', value: 'N', help: 'virtual CPUs, over what the job says' },
      { name: 'memory', value: 'SIZE', help: 'memory of the VM, such as 512M or 4G, over what the job says' },
      {
        name: 'network',
        value: 'LIST',
        repeat: true,
        suggestions: ['none', ...PRESET_NAMES],
        help: 'presets and destinations that jobs may connect to, over what they say: npm,https://example.com or none',
      },
      {
        name: 'exec',
        value: 'MODE',
        choices: ['audit', 'enforce', 'terminate'],
        help: 'what happens to code that nobody vouches for, over what jobs say: audit, enforce or terminate',
      },
      {
        name: 'env',
        short: 'e',
        value: 'K=V',
        repeat: true,
        help: 'variable for every step; -e K takes its value from this environment',
      },
      {
        name: 'secret',
        short: 's',
        value: 'NAME',
        repeat: true,
        help: 'secret with the value of the variable NAME of this environment, for jobs that name it, or for the command',
      },
      {
        name: 'secret-file',
        value: 'NAME=PATH',
        repeat: true,
        help: 'secret with the content of a file',
      },
      {
        name: 'secrets-from',
        value: 'FILE',
        repeat: true,
        help: 'file with a line NAME=VALUE for each of several secrets',
      },
      { name: 'directory', short: 'C', value: 'DIR', help: 'start in DIR instead of the current directory' },
      { name: 'no-ignore', help: 'send what git ignores too' },
      {
        name: 'shell-on-failure',
        help: 'at the first step of a job that fails, open a shell in its VM before that is destroyed',
      },
      { name: 'artifacts', value: 'DIR', help: 'put the artifacts of a job into DIR/JOB' },
      { name: 'list', short: 'l', help: 'list the jobs and run nothing' },
      { name: 'dryrun', short: 'n', help: 'show what would run and run nothing' },
      {
        name: 'progress',
        value: 'MODE',
        choices: ['auto', 'plain', 'tty', 'rawjson'],
        help: 'auto, plain, tty (a live status line) or rawjson (every event and output as a line of JSON)',
      },
      {
        ...JSON_OPTION,
        help: 'print one JSON document with every result on stdout; all else goes to stderr',
      },
    ],
    examples: [
      { command: 'ct run build', what: 'the job `build` and what it needs' },
      { command: 'ct run', what: 'all jobs, side by side where they may' },
      { command: 'ct run -- make test', what: 'one command in the current tree' },
      { command: 'git diff | ct run -- wc -l', what: 'stdin goes to the command' },
      { command: 'ct run -s TOKEN -- ./deploy.sh', what: 'with $TOKEN as a secret: never in a log' },
      {
        command: 'ct run --network npm -- npm ci',
        what: 'what npm here is configured to use can be reached',
      },
      {
        command: 'ct run --image debian-12 --cpu 4 --memory 4G -e V=1 build',
        what: 'other values than ct.yml has',
      },
    ],
    load: () => import('./commands/run.ts'),
  },
  {
    name: 'ps',
    summary: 'list the runs that are under way, or all that are kept',
    description: [
      'Lists the runs of this host, newest first: those of every terminal and script that uses the same CT_HOME.',
      'With --json it prints a line of JSON per run, with the keys run, job, state, outcome, exit, error, image, started, ended and duration (in seconds).',
    ],
    options: [
      { name: 'all', short: 'a', help: 'those that have ended, too' },
      { name: 'json', help: 'print a line of JSON per run on stdout' },
    ],
    examples: [
      { command: 'ct ps', what: 'what runs now' },
      { command: 'ct ps -a --json', what: 'all that are kept, for a script' },
    ],
    load: () => import('./commands/ps.ts'),
  },
  {
    name: 'logs',
    summary: 'show what a run wrote, while it runs or later',
    description: [
      'Shows the log of a run as `ct run` showed it: what the job wrote to stdout goes to stdout, what it wrote to stderr and lines of ct go to stderr. A run that has not ended is shown up to now; -f stays until it ends.',
      'A log takes at most 64 MiB: of a longer one the beginning and the end are kept, and a line says how much is missing.',
    ],
    positionals: { placeholder: 'RUN', max: 1, help: RUN_HELP_OR_LATEST },
    options: [
      { name: 'follow', short: 'f', help: 'stay until the run ends' },
      { name: 'failed', help: 'only steps that did not succeed' },
      { name: 'step', value: 'STEP', repeat: true, help: 'only this step: its number, from 1, or its name' },
      {
        name: 'timestamps',
        short: 't',
        help: 'put the time (UTC) at which it was written before every line',
      },
      {
        name: 'json',
        help: 'print every event and every piece of output as a line of JSON, with its time: as `ct run --progress=rawjson`',
      },
    ],
    examples: [
      { command: 'ct logs', what: 'the newest run' },
      { command: 'ct logs -f build', what: 'follow the newest run of the job `build`' },
      { command: 'ct logs --failed build', what: 'only what failed' },
      { command: 'ct logs --json -f build', what: 'lines of JSON as it goes on, for a script' },
    ],
    load: () => import('./commands/logs.ts'),
  },
  {
    name: 'inspect',
    summary: 'show everything that is recorded of a run',
    description: [
      'Shows state, result, VM, steps, how long each state took, and what of the VM was removed and how that is known.',
    ],
    positionals: { placeholder: 'RUN', max: 1, help: RUN_HELP_OR_LATEST },
    options: [JSON_OPTION],
    examples: [
      { command: 'ct inspect', what: 'the newest run' },
      { command: 'ct inspect build --json', what: 'the newest run of `build`, for a script' },
    ],
    load: () => import('./commands/inspect.ts'),
  },
  {
    name: 'shell',
    summary: 'open a shell in the VM of a run, beside its job',
    description: [
      'Starts a shell, or the command after --, in the VM of a run that is under way: as the user of its steps, with the environment and the working directory of the step that runs, and without the secrets that steps are given. On a terminal it gets one, too; else stdin, stdout and stderr are those of the command. The exit status is that of the shell.',
      'The job does not wait for it: when the job ends, the VM is destroyed and the shell with it (exit status 125). That it was opened, when and by whom, is in the record of the run and in its log; what is typed and shown is not. Secrets of the job are masked in its output.',
    ],
    positionals: { placeholder: 'RUN', max: 1, help: RUN_HELP_OR_LATEST },
    passthrough: { placeholder: 'CMD ARGS', help: 'command to run instead of a shell' },
    options: [],
    examples: [
      { command: 'ct shell build', what: 'the newest run of the job `build`' },
      { command: 'ct shell build -- ps aux', what: 'one command' },
    ],
    load: () => import('./commands/shell.ts'),
  },
  {
    name: 'cancel',
    summary: 'end runs and destroy their VMs',
    description: [
      'Ends the runs and waits until their VMs are gone; whoever started them sees them cancelled (exit status 130). A run that has ended already stays as it is.',
    ],
    positionals: { placeholder: 'RUN', min: 1, max: Number.POSITIVE_INFINITY, help: RUN_HELP },
    options: [],
    examples: [{ command: 'ct cancel build', what: 'the newest run of the job `build`' }],
    load: () => import('./commands/cancel.ts'),
  },
  {
    name: 'rm',
    summary: 'remove the record and the log of runs that have ended',
    description: [
      'Removes what is kept of the runs. A run that is under way is not removed; cancel it first.',
    ],
    positionals: { placeholder: 'RUN', min: 1, max: Number.POSITIVE_INFINITY, help: RUN_HELP },
    options: [],
    examples: [{ command: 'ct rm build', what: 'the newest run of the job `build`' }],
    load: () => import('./commands/rm.ts'),
  },
  {
    name: 'gc',
    summary: 'remove old runs and their logs, and parts of images that are gone',
    description: [
      'Removes runs that have ended beyond the newest N, and those that began too long ago. The host daemon does the same, with the values below, whenever it becomes idle.',
      'And removes parts that no image has had for a day, with signatures and results of scans of images that are gone, as every build does.',
    ],
    options: [
      { name: 'keep', value: 'N', help: 'how many runs to keep; 200 if absent' },
      { name: 'days', value: 'N', help: 'how many days to keep them; 14 if absent' },
      JSON_OPTION,
    ],
    examples: [
      { command: 'ct gc', what: 'what the host daemon would do' },
      { command: 'ct gc --keep 0', what: 'everything that has ended' },
    ],
    load: () => import('./commands/gc.ts'),
  },
  {
    name: 'alerts',
    summary: 'list what policy has recorded, denied or ended',
    description: [
      'Lists the alerts of this CT_HOME, the newest last: runs that policy ended, and what jobs tried that the operator banned or blocked. What is merely not allowed is in `ct policy explain`. The same again is one alert with a count. docs/alerts.md says how they reach webhooks.',
      'With --json it prints a line of JSON per alert, as it is in the alert file. Exit status 0, also if there are none.',
    ],
    positionals: {
      placeholder: 'RUN',
      max: 1,
      help: 'only of this run (its id, or how that begins or ends, or `latest`) or of this job; all if absent',
    },
    options: [
      { name: 'last', short: 'n', value: 'N', help: 'only the newest N' },
      { name: 'follow', short: 'f', help: 'stay, and show each as it is filed' },
      { name: 'since', value: 'TIME', help: 'only later ones: 30m, 2d (ago), or 2026-01-31T09:00:00Z' },
      { name: 'json', help: 'print a line of JSON per alert on stdout' },
    ],
    examples: [
      { command: 'ct alerts latest', what: 'those of the newest run' },
      { command: 'ct alerts --since 1d', what: 'those of the last day' },
      { command: 'ct alerts -f --json', what: 'for a script, as they come' },
    ],
    load: () => import('./commands/alerts.ts'),
  },
  {
    name: 'audit verify',
    summary: 'prove that the audit record of a run is complete and unchanged',
    description: [
      'Checks the seal of the record with the public key of this host, every file against the seal, and the chain, order and counts of what is in them. If something was changed, cut off, left out or put in, it says what, in which file and at which byte.',
      'Exit status 0 if everything holds, 122 if not.',
    ],
    positionals: { placeholder: 'RUN', max: 1, help: RUN_HELP_OR_LATEST },
    options: [
      {
        name: 'key',
        value: 'FILE',
        help: 'public key of the host that sealed it (PEM), kept where nobody on this host can change it; CT_HOME/keys/host.pub if absent',
      },
      JSON_OPTION,
    ],
    examples: [{ command: 'ct audit verify build', what: 'the newest run of the job `build`' }],
    load: () => import('./commands/audit/verify.ts'),
  },
  {
    name: 'audit show',
    summary: 'show what a run did: its processes, files, destinations and refusals',
    description: [
      'Shows the tree of processes with how long each took and how it ended, files written outside of the workspace, destinations by the names that were asked for, and what was refused. It does not prove that the record is unchanged: `ct audit verify` does.',
      'With --html it writes one page with everything, which can be searched and loads nothing.',
    ],
    positionals: { placeholder: 'RUN', max: 1, help: RUN_HELP_OR_LATEST },
    options: [{ name: 'html', value: 'FILE', help: 'write a page to FILE instead' }, JSON_OPTION],
    examples: [
      { command: 'ct audit show', what: 'the newest run' },
      { command: 'ct audit show build --html build.html', what: 'the newest run of `build`, for a browser' },
    ],
    load: () => import('./commands/audit/show.ts'),
  },
  {
    name: 'audit query',
    summary: 'find events of a run by process, system call, path, destination and time',
    description: [
      'Prints a line for every event that fits all that is given. System calls are looked through only with --syscall.',
      'With --json lines are those of `ct audit export`.',
    ],
    positionals: { placeholder: 'RUN', max: 1, help: RUN_HELP_OR_LATEST },
    options: [
      { name: 'process', value: 'WHAT', help: 'a pid, the name of a program, or its path or pattern' },
      { name: 'syscall', value: 'CALL', help: 'a system call: its name or number' },
      { name: 'path', value: 'PATH', help: 'a file, a directory with all below it, or a pattern' },
      {
        name: 'destination',
        value: 'HOST',
        help: 'a name, `*.` and a name, an address, or `*`; `:PORT` may follow',
      },
      { name: 'since', value: 'TIME', help: 'a time, or how long after the first step began, such as 30s' },
      { name: 'until', value: 'TIME', help: 'likewise' },
      { name: 'json', help: 'print a line of JSON per event on stdout' },
    ],
    examples: [
      { command: "ct audit query --path '/etc/**'", what: 'who touched /etc' },
      {
        command: 'ct audit query build --process npm --destination 192.0.2.1',
        what: 'whether npm went there',
      },
      { command: 'ct audit query --syscall ptrace', what: 'every ptrace(2), with arguments and result' },
    ],
    load: () => import('./commands/audit/query.ts'),
  },
  {
    name: 'audit diff',
    summary: 'say what one run did that another one did not',
    description: [
      'Compares programs (by path and digest), destinations, files written outside of the workspace and refusals of the second run with those of the first. Numbers of processes and names of temporary files do not count.',
    ],
    positionals: { placeholder: 'RUN', min: 2, max: 2, help: RUN_HELP },
    options: [JSON_OPTION],
    examples: [{ command: 'ct audit diff 4f2a latest', what: 'what the newest run did anew' }],
    load: () => import('./commands/audit/diff.ts'),
  },
  {
    name: 'audit export',
    summary: 'print the events of a run as Tetragon does',
    description: [
      'Prints a line of JSON per event, in the format of Tetragon, so that what reads its events reads these. docs/audit-export.md says what becomes what.',
    ],
    positionals: { placeholder: 'RUN', max: 1, help: RUN_HELP_OR_LATEST },
    options: [
      { name: 'follow', short: 'f', help: 'stay until the run ends' },
      { name: 'syscalls', help: 'every system call, too' },
    ],
    examples: [
      { command: 'ct audit export build > build.jsonl', what: 'the newest run of `build`' },
      { command: 'ct audit export -f', what: 'follow the newest run' },
    ],
    load: () => import('./commands/audit/export.ts'),
  },
  {
    name: 'policy check',
    summary: 'say what policy allows a job, before it runs',
    description: [
      'Plans the jobs of ct.yml and asks the host daemon what it would ask when they run: whether each may run, in which mode, what every preset stands for on this host, and everything that it can connect to; or which rules say no, and what to do about it. Nothing is run.',
      'Exit status 0 if all of them are allowed, 122 if not.',
    ],
    positionals: {
      placeholder: 'JOB',
      max: Number.POSITIVE_INFINITY,
      help: 'job of ct.yml, with what it needs; all if absent',
    },
    options: [
      { name: 'directory', short: 'C', value: 'DIR', help: 'start in DIR instead of the current directory' },
      {
        name: 'trust',
        value: 'TRUST',
        choices: ['local', 'trusted', 'untrusted'],
        help: 'as if the job came from there: untrusted is a pull request of a stranger; local if absent',
      },
      JSON_OPTION,
    ],
    examples: [
      { command: 'ct policy check build', what: 'the job `build`' },
      { command: 'ct policy check --trust untrusted', what: 'what a pull request of a stranger would get' },
    ],
    load: () => import('./commands/policy/check.ts'),
  },
  {
    name: 'policy data',
    summary: 'print the policy data as Rego sees it',
    description: [
      'Checks the data of the policy in DIR and prints it as JSON, prepared for the rules that ct ships: `{"ct": {"config": …}}`. An OPA server that decides in their place needs it; docs/policy.md explains.',
    ],
    positionals: {
      placeholder: 'DIR',
      max: 1,
      help: 'directory of a policy; the one that counts on this host if absent',
    },
    options: [],
    examples: [{ command: 'ct policy data ./policy > data.json', what: 'for `opa run --server`' }],
    load: () => import('./commands/policy/data.ts'),
  },
  {
    name: 'policy explain',
    summary: 'show every denial of a run, with the rule behind it',
    description: [
      'Shows what policy denied, recorded or ended a run for: when, in which step, what was tried, which rule says so and where it stands, and how to ask for it.',
    ],
    positionals: { placeholder: 'RUN', max: 1, help: RUN_HELP_OR_LATEST },
    options: [JSON_OPTION],
    examples: [{ command: 'ct policy explain build', what: 'the newest run of the job `build`' }],
    load: () => import('./commands/policy/explain.ts'),
  },
  {
    name: 'policy learn',
    summary: 'print the smallest network that runs needed',
    description: [
      'Prints YAML to paste: `network:` for the job in ct.yml, and what the policy has to say for it. It names what the runs connected to and what they were denied, by preset, or by host, port and protocol, never wider. What is banned or blocked is not in it; comments say why.',
      'Run the job in mode `audit` first: then everything it needs is tried.',
    ],
    positionals: { placeholder: 'RUN', min: 1, max: Number.POSITIVE_INFINITY, help: RUN_HELP },
    options: [],
    examples: [{ command: 'ct policy learn build test', what: 'what the newest runs of both needed' }],
    load: () => import('./commands/policy/learn.ts'),
  },
  {
    name: 'policy show',
    summary: 'show which policy counts on this host',
    description: [
      'Shows where the policy lies, its revision, what decides by it, and its mode of the network.',
    ],
    options: [JSON_OPTION],
    examples: [{ command: 'ct policy show', what: 'as a page' }],
    load: () => import('./commands/policy/show.ts'),
  },
  {
    name: 'policy test',
    summary: 'run the Rego tests of a policy',
    description: [
      'Runs the tests (*_test.rego) in DIR together with the rules and tests that ct ships. It needs the program `opa`; where Go is installed, ct gets it through that, once.',
      'Exit status 0 if all pass, 1 if not.',
    ],
    positionals: {
      placeholder: 'DIR',
      max: 1,
      help: 'directory of a policy; the one that counts on this host if absent',
    },
    options: [],
    examples: [{ command: 'ct policy test ./policy', what: 'before it is put into place' }],
    load: () => import('./commands/policy/test.ts'),
  },
  {
    name: 'doctor',
    summary: 'check that this machine can run jobs, and say how to fix what is missing',
    description: [
      'Checks every requirement: ✓ is fine, ! works with a drawback, ✗ keeps jobs from running. Says whether jobs run under KVM or under software emulation, which is no security boundary.',
      'Of every measure that isolates VMs it says whether it holds here, as seen on a VMM that is started for it and as the host daemon reports it.',
      'Exit status 0 if jobs can run, 1 if not.',
    ],
    options: [
      {
        name: 'report',
        value: 'FILE',
        help: 'write checks, versions, cgroups and the last lines of the host daemon to FILE, to attach to a bug',
      },
      JSON_OPTION,
    ],
    examples: [
      { command: 'ct doctor', what: 'all checks' },
      { command: 'ct doctor --report ct-report.txt', what: 'and a file for a bug report' },
    ],
    load: () => import('./commands/doctor.ts'),
  },
  {
    name: 'host',
    summary: 'be the host daemon, for a service manager',
    description: [
      'Every command that needs the host daemon starts it, so this is for machines where it is a service with a cgroup of its own: deploy/systemd/ct-host.service. It stays until it is told to leave; SIGTERM lets running jobs end, a second SIGTERM does not.',
    ],
    options: [{ name: 'foreground', help: 'required: the daemon replaces this process, and logs to stderr' }],
    examples: [{ command: 'CT_HOME=/var/lib/ct ct host --foreground', what: 'the daemon of that CT_HOME' }],
    load: () => import('./commands/host.ts'),
  },
  {
    name: 'init',
    summary: 'write a commented ct.yml that fits this repository',
    description: [
      'Looks at what is in the current directory (npm, make, cargo, go, python) and writes a ct.yml that builds and tests it.',
    ],
    options: [
      { name: 'directory', short: 'C', value: 'DIR', help: 'directory of the repository' },
      { name: 'force', help: 'replace a ct.yml that exists' },
    ],
    examples: [{ command: 'ct init', what: 'write ./ct.yml' }],
    load: () => import('./commands/init.ts'),
  },
  {
    name: 'image build',
    summary: 'build an image from its definition',
    description: [
      'Builds the image that NAME.yml defines, in images/ of ct or .ct/images/ of the project: root file system, kernel and initramfs, stored by content in CT_HOME. Does nothing if the image is current. `ct run` does the same when it has to.',
      'It takes the packages of the lock NAME.lock.json and no others. Without a lock, it takes what the apt sources of this machine have today. If a lock cannot be met any more, it does the same, prints the difference and marks the image as local; with --locked that is an error.',
      'With --check it builds the image twice, in different surroundings, keeps neither, and says whether both are the same: exit status 0 if they are.',
    ],
    positionals: { placeholder: 'NAME', max: 1, help: 'image to build; debian-12 if absent' },
    options: [
      { name: 'force', help: 'build even if the image is current' },
      {
        name: 'locked',
        help: 'fail with IMAGE_LOCK_STALE rather than take other packages than those of the lock',
      },
      { name: 'check', help: 'build it twice, and compare' },
      DIRECTORY_OPTION,
      JSON_OPTION,
    ],
    examples: [
      { command: 'ct image build', what: 'the default image' },
      { command: 'ct image build --locked ci', what: 'from exactly what was reviewed' },
      { command: 'ct image build --check debian-12', what: 'prove that it can be reproduced' },
    ],
    load: () => import('./commands/image/build.ts'),
  },
  {
    name: 'image diff',
    summary: 'show what is different between two images, or two locks',
    description: [
      'Prints added, removed and changed packages as Markdown, for a pull request. Of two images that are built it compares the sizes and every file, too.',
      'If there is a vulnerability database (`ct vuln db update`), also which vulnerabilities come and go with the packages.',
      'FROM and TO are each an image, by name or digest; a lock, by its path; a lock in a revision, as git:REVISION:PATH; or /dev/null, for none.',
    ],
    positionals: { placeholder: 'FROM TO', min: 2, max: 2, help: 'what to compare' },
    options: [JSON_OPTION],
    examples: [
      { command: 'ct image diff debian-12 node', what: 'two images' },
      {
        command: 'ct image diff git:main:.ct/images/ci.lock.json .ct/images/ci.lock.json',
        what: 'what a branch does to a lock',
      },
    ],
    load: () => import('./commands/image/diff.ts'),
  },
  {
    name: 'image lock',
    summary: 'write down which packages an image consists of',
    description: [
      'Chooses packages from the apt sources of this machine, as a build would, and writes them to NAME.lock.json beside NAME.yml, each with version and digest. Prints what has changed. Commit the file: from then on, everybody builds the same image.',
      'With --check nothing is written, and the exit status is 1 if the packages would change.',
    ],
    positionals: {
      placeholder: 'NAME',
      max: Number.POSITIVE_INFINITY,
      help: 'images to lock; all in .ct/images of the project if absent',
    },
    options: [{ name: 'check', help: 'only say what would change' }, DIRECTORY_OPTION, JSON_OPTION],
    examples: [
      { command: 'ct image lock', what: 'all images of this project' },
      { command: 'ct image lock --check ci', what: 'are there newer packages?' },
    ],
    load: () => import('./commands/image/lock.ts'),
  },
  {
    name: 'image import',
    summary: 'make an image from a container image or a disk',
    description: [
      'Takes an image in OCI layout (umoci, skopeo, buildah, Bazel rules_oci, distroless), an archive of docker save, or a disk with an ext4 file system (Packer), and stores it as an image that jobs can name. Nothing of it is unpacked or run on this machine. Needs no root.',
      'SOURCE is oci:DIR[:TAG], docker-archive:FILE[:NAME:TAG], raw:FILE[:pN] or qcow2:FILE[:pN], where pN is a partition.',
    ],
    positionals: { placeholder: 'SOURCE', max: 1, min: 1, help: 'what to import' },
    options: [
      { name: 'name', value: 'NAME', help: 'name of the image; required' },
      {
        name: 'kernel-of',
        value: 'IMAGE',
        help: 'image whose kernel and initramfs it gets; debian-12 if absent',
      },
      {
        name: 'user',
        value: 'NAME',
        help: 'account of the image that steps run as, over what the image says',
      },
      {
        name: 'allow-setuid',
        help: 'take an image with set-uid files or file capabilities, without these rights',
      },
      { name: 'max-size', value: 'SIZE', help: 'most bytes that its files may have; 16G if absent' },
      DIRECTORY_OPTION,
      JSON_OPTION,
    ],
    examples: [
      { command: 'ct image import oci:bazel-bin/image --name app', what: 'what rules_oci built' },
      { command: 'ct image import qcow2:output/disk.qcow2 --name builder', what: 'what Packer built' },
    ],
    load: () => import('./commands/image/import.ts'),
  },
  {
    name: 'image push',
    summary: 'upload an image to an OCI registry',
    description: [
      'Uploads the image, its signatures and its SBOMs. Credentials are those of `docker login` or `podman login`. TLS is verified; http is for registries on this machine.',
    ],
    positionals: {
      placeholder: 'NAME REGISTRY/REPOSITORY[:TAG]',
      max: 2,
      min: 2,
      help: 'image, and where it goes; the tag is latest if absent',
    },
    options: [JSON_OPTION],
    examples: [{ command: 'ct image push debian-12 registry.example/ci/debian-12:1', what: 'under a tag' }],
    load: () => import('./commands/image/push.ts'),
  },
  {
    name: 'image pull',
    summary: 'fetch an image from an OCI registry, and verify it',
    description: [
      'Fetches an image that `ct image push` uploaded, with its signatures. It has the same digest as where it was pushed. With --key or --identity, an image without an accepted signature is refused before its parts are fetched.',
    ],
    positionals: {
      placeholder: 'REGISTRY/REPOSITORY[:TAG][@DIGEST]',
      max: 1,
      min: 1,
      help: 'where it is; the tag is latest if absent',
    },
    options: [
      {
        name: 'name',
        value: 'NAME',
        help: 'name that it must have; the last part of the repository if absent',
      },
      ...SIGNER_OPTIONS,
      JSON_OPTION,
    ],
    examples: [
      {
        command: 'ct image pull registry.example/ci/debian-12:1 --key image.pub',
        what: 'if it is signed with that key',
      },
    ],
    load: () => import('./commands/image/pull.ts'),
  },
  {
    name: 'image sign',
    summary: 'sign an image',
    description: [
      'Signs the digest of the image, with a key of yours or as an OIDC identity (keyless), and stores the signature beside it. An image can have several.',
      'Signs provenance (SLSA v1) and SBOM of the image, too, where there are any.',
    ],
    positionals: { placeholder: 'IMAGE', max: 1, min: 1, help: 'name or digest of a stored image' },
    options: [
      ...SIGN_OPTIONS,
      {
        name: 'builder',
        value: 'URI',
        help: 'what built the image, for its provenance: the signer vouches for it',
      },
      JSON_OPTION,
    ],
    examples: [{ command: 'ct image sign debian-12 --key image.key', what: 'with a key of yours' }],
    load: () => import('./commands/image/sign.ts'),
  },
  {
    name: 'sign',
    summary: 'sign scripts of a project, so that jobs can demand them unchanged',
    description: [
      'Makes a manifest of the files, signed with a key of yours, by a command that keeps one, or as an OIDC identity (keyless). A job with `verify: {scripts: ct.signed.json}` runs only if an accepted signer signed it and every file is as it was; of a directory nothing may be changed, missing or added. What git ignores is left out.',
      'With --check it says what a manifest covers and what of it has changed; with a public --key or an --identity also who signed it.',
    ],
    positionals: {
      placeholder: 'PATH',
      max: Number.POSITIVE_INFINITY,
      help: 'file or directory of the project; a manifest with --check',
    },
    options: [
      ...SIGN_OPTIONS,
      {
        name: 'output',
        short: 'o',
        value: 'FILE',
        help: 'where the manifest goes; ct.signed.json if absent',
      },
      { name: 'check', help: 'compare files with the manifest; exit status 122 if something changed' },
      ...SIGNER_OPTIONS.filter(({ name }) => name !== 'key'),
      DIRECTORY_OPTION,
      JSON_OPTION,
    ],
    examples: [
      {
        command: 'ct sign scripts/ ci/build.sh --key release.key',
        what: 'with a key of yours, into ct.signed.json',
      },
      {
        command: 'ct sign scripts/ --identity-token token --signing-config signing_config.json',
        what: 'keyless, for instance in a CI workflow',
      },
      { command: 'ct sign --check', what: 'what ct.signed.json covers, and what changed' },
      { command: 'ct sign --check --key release.pub', what: 'also that this key signed it' },
    ],
    load: () => import('./commands/sign.ts'),
  },
  {
    name: 'evidence fetch',
    summary: 'collect what registries keep as evidence about packages',
    description: [
      'Asks the registry that npm or pip of this machine is configured for, for signatures and attestations of every package in a lock file, and writes them beside it: FILE.evidence.json. Jobs with `verify: {dependencies: signature}` or `provenance` need it; what is in it is verified when they run.',
    ],
    positionals: {
      placeholder: 'FILE',
      max: Number.POSITIVE_INFINITY,
      help: 'lock file; package-lock.json, npm-shrinkwrap.json and requirements.txt if absent',
    },
    options: [DIRECTORY_OPTION, JSON_OPTION],
    examples: [
      { command: 'ct evidence fetch', what: 'for the lock files of this project' },
      { command: 'ct evidence fetch app/package-lock.json', what: 'for one of them' },
    ],
    load: () => import('./commands/evidence/fetch.ts'),
  },
  {
    name: 'image verify',
    summary: 'compare an image with its digests, and verify who signed it',
    description: [
      'Verifies that an accepted signer signed the image, and that each part has the digest that the manifest names. Parts that have not changed since they were compared are not read again. Uses no network.',
    ],
    positionals: { placeholder: 'IMAGE', max: 1, min: 1, help: 'name or digest of a stored image' },
    options: [...SIGNER_OPTIONS, { name: 'full', help: 'read every part again' }, JSON_OPTION],
    examples: [
      { command: 'ct image verify debian-12 --key image.pub', what: 'signed with that key, and intact' },
      { command: 'ct image verify debian-12 --full', what: 'intact, read from the disk again' },
    ],
    load: () => import('./commands/image/verify.ts'),
  },
  {
    name: 'image ls',
    summary: 'list the images that are built',
    description: ['Name, digest, size and kernel of every image in CT_HOME.'],
    options: [JSON_OPTION],
    examples: [{ command: 'ct image ls', what: 'as a table' }],
    load: () => import('./commands/image/ls.ts'),
  },
  {
    name: 'image sbom',
    summary: 'print the software bill of materials of an image',
    description: [
      'Prints what an image consists of: packages with their sources, licences and digests, files of no package, kernel and guest agent. It was made when the image was built, and the digest of the image stands for it, too.',
    ],
    positionals: { placeholder: 'IMAGE', min: 1, max: 1, help: 'name or digest of an image that is built' },
    options: [
      {
        name: 'format',
        value: 'FORMAT',
        choices: ['cyclonedx', 'spdx'],
        help: 'CycloneDX 1.6, which is the default, or SPDX 2.3; both in JSON',
      },
      { name: 'output', short: 'o', value: 'FILE', help: 'write to FILE instead of stdout' },
    ],
    examples: [{ command: 'ct image sbom debian-12 --format spdx -o debian-12.spdx.json', what: 'as SPDX' }],
    load: () => import('./commands/image/sbom.ts'),
  },
  {
    name: 'image provenance',
    summary: 'print how an image was made',
    description: [
      'Prints SLSA provenance v1: definition, lock and every package by digest, and the builder. With --key or --identity it is what an accepted signer has signed, and nothing else; without, what this machine wrote down when it made the image, which nobody vouches for.',
    ],
    positionals: { placeholder: 'IMAGE', min: 1, max: 1, help: 'name or digest of a stored image' },
    options: [...SIGNER_OPTIONS],
    examples: [
      { command: 'ct image provenance debian-12', what: 'of an image that was built here' },
      { command: 'ct image provenance debian-12 --key image.pub', what: 'as the key signed it' },
    ],
    load: () => import('./commands/image/provenance.ts'),
  },
  {
    name: 'image rm',
    summary: 'remove images',
    description: [
      'Removes images by their names, with their signatures and the parts that no other image has. Jobs that run in them go on. An image with a definition is built again when a job asks for it.',
    ],
    positionals: {
      placeholder: 'IMAGE',
      min: 1,
      max: Number.POSITIVE_INFINITY,
      help: 'name of a stored image',
    },
    options: [JSON_OPTION],
    examples: [{ command: 'ct image rm ci', what: 'one, with everything that only it has' }],
    load: () => import('./commands/image/rm.ts'),
  },
  {
    name: 'image scan',
    summary: 'compare images with what is known of vulnerabilities',
    description: [
      'Looks up the packages of images, by their SBOMs, in the vulnerability database (`ct vuln db update`), and prints what it finds, the worst first, with the version that has it fixed. Without a name, all images that are stored.',
      'A database that is too old is refused. With --detector apt no database is needed: what is installed is compared with the security updates of the apt sources of this machine.',
      'docs/scanning.md says how findings are accepted, and what the results that are kept look like.',
    ],
    positionals: { placeholder: 'IMAGE', max: Number.POSITIVE_INFINITY, help: 'image that is stored' },
    options: [
      {
        name: 'fail-on',
        value: 'SEVERITY',
        choices: ['critical', 'high', 'medium', 'low', 'negligible'],
        help: 'exit with 122 if a finding of this severity or a worse one counts',
      },
      {
        name: 'format',
        value: 'FORMAT',
        choices: ['table', 'json', 'sarif'],
        help: 'table, json or sarif (2.1.0); table if absent',
      },
      {
        name: 'allow',
        value: 'FILE',
        repeat: true,
        help: 'findings that do not count: OpenVEX, or YAML with reasons and dates',
      },
      {
        name: 'detector',
        value: 'DETECTOR',
        choices: ['database', 'apt'],
        help: 'database, or apt: missing security updates; database if absent',
      },
      {
        name: 'watch',
        help: 'stay, look again when images or the database change, and raise an alert for what is new',
      },
    ],
    examples: [
      { command: 'ct image scan debian-12 --fail-on high', what: 'for a pipeline' },
      {
        command: 'ct image scan debian-12 --format sarif > scan.sarif',
        what: 'for code scanning of a forge',
      },
      { command: 'ct image scan --detector apt debian-12', what: 'without a database' },
    ],
    load: () => import('./commands/image/scan.ts'),
  },
  {
    name: 'vuln db',
    summary: 'make the vulnerability database from feeds, or show how old it is',
    description: [
      '`update` reads all feeds that are named and makes a new database of them; if anything is wrong with one, the database stays as it was. Feeds are seen by their contents: OSV (ZIP archive, directory, JSON lines) and the JSON of the Debian security tracker.',
      '`status` shows which feeds the database is from, and as of when.',
    ],
    positionals: {
      placeholder: 'ACTION',
      min: 1,
      max: 1,
      help: 'update or status',
      choices: ['update', 'status'],
    },
    options: [
      {
        name: 'from',
        value: 'FILE|URL',
        repeat: true,
        help: 'a feed; those of vulnerabilities.yml in the policy directory if absent',
      },
      JSON_OPTION,
    ],
    examples: [
      { command: 'ct vuln db update --from all.zip --from debian.json', what: 'from two files' },
      { command: 'ct vuln db status', what: 'how old it is' },
    ],
    load: () => import('./commands/vuln/db.ts'),
  },
  {
    name: 'bench start',
    summary: 'measure how long a VM takes to appear and to vanish, and what it costs',
    description: [
      'Boots, restores and destroys VMs of its own, without the host daemon, and prints percentiles: cold boot, restore until the first byte of a tiny static program arrives, destroy, private memory.',
    ],
    options: [
      { name: 'runs', short: 'n', value: 'RUNS', help: 'samples of each figure; 20 if absent' },
      { name: 'image', value: 'IMAGE', help: 'image to boot; debian-12 if absent' },
      {
        name: 'vs',
        value: 'RUNTIME',
        choices: ['runc'],
        help: 'time the same program under `runc run`, in turn',
      },
      PLOT_OPTION,
      JSON_OPTION,
    ],
    examples: [{ command: 'ct bench start --json', what: 'figures for a script' }],
    load: () => import('./commands/bench/start.ts'),
  },
  {
    name: 'bench workload',
    summary: 'measure what work takes in a VM, and in a container beside it',
    description: [
      'Runs workloads as jobs: `compile` (a C project of 20 files, make -j1), `clone` (git clone of a generated repository), `disk` (write, sync and read back large files and many small ones) and `npm` (`npm ci && npm test` of examples/node, from a registry on loopback, through the proxy). Prints percentiles of the time of the workload alone, by a clock inside, and of the whole job, by a clock outside.',
      'With --vs runc every job alternates with a container that has the same image, user, cpu and memory, and ratios are printed: what isolation in a VM costs here. They hold for the accelerator they were taken with: those of software emulation say nothing about KVM.',
      'With --json: runs, accelerator, vmm, shape, startedAt, host, container (with --vs) and workloads, by name: image, vm and runc, the last two with insideMs and wholeMs (p50, p95, min, max), insideRatio and wholeRatio. docs/benchmarks.md describes them.',
    ],
    positionals: {
      placeholder: 'WORKLOAD',
      max: 4,
      help: 'compile, clone, disk or npm; all if absent',
      choices: ['compile', 'clone', 'disk', 'npm'],
    },
    options: [
      {
        name: 'runs',
        short: 'n',
        value: 'RUNS',
        help: 'how often each is run; 5 if absent, and once more that is not counted',
      },
      {
        name: 'image',
        value: 'IMAGE',
        help: 'image to run in, with bash and what the workload needs; debian-12, and node for npm, if absent',
      },
      {
        name: 'vs',
        value: 'RUNTIME',
        choices: ['runc'],
        help: 'run the same in a container of `runc`, in turn',
      },
      PLOT_OPTION,
      JSON_OPTION,
    ],
    examples: [
      { command: 'ct bench workload --vs runc', what: 'all of them, against containers' },
      {
        command: 'ct bench workload -n 20 --vs runc --plot compile.svg compile',
        what: 'one, and a plot of it',
      },
    ],
    load: () => import('./commands/bench/workload.ts'),
  },
  {
    name: 'bench egress',
    summary: 'measure what the network of a job costs',
    description: [
      'Downloads and uploads 500 MB between a job and a server on loopback, through the proxy, and the same as plain bytes over a port of a VM that does nothing else. Then: 500 connections at once, connections one after another, memory of idle ones, how long the host daemon takes to answer meanwhile, and how long a policy of 10,000 rules takes to decide. Uses a host daemon and a policy of its own.',
      'With --json: one document; docs/benchmarks.md describes it.',
    ],
    options: [
      { name: 'runs', short: 'n', value: 'RUNS', help: 'transfers and floods of each kind; 3 if absent' },
      { name: 'image', value: 'IMAGE', help: 'image to run in, with bash and getent; debian-12 if absent' },
      JSON_OPTION,
    ],
    examples: [{ command: 'ct bench egress', what: 'as a table, with budgets' }],
    load: () => import('./commands/bench/egress.ts'),
  },
  {
    name: 'bench audit',
    summary: 'measure what the record of system calls costs',
    description: [
      'Lets two guests take turns, of which one has a tracer: a C compile, `git status` and `find` over 20,000 files, each timed in the guest. Then it measures how old events are when they come to the host. Prints the ratios, system calls per second, bytes on disk and memory.',
      'With --json: one document; docs/benchmarks.md describes it.',
    ],
    options: [
      {
        name: 'runs',
        short: 'n',
        value: 'RUNS',
        help: 'samples in each guest; 10 if absent, and one more that is not counted',
      },
      {
        name: 'image',
        value: 'IMAGE',
        help: 'image to run in, with bash, gcc, make, git and find; debian-12 if absent',
      },
      JSON_OPTION,
    ],
    examples: [{ command: 'ct bench audit', what: 'as a table, with budgets' }],
    load: () => import('./commands/bench/audit.ts'),
  },
  {
    name: 'bench jobs',
    summary: 'run many jobs, and look for anything that is left of them',
    description: [
      'Runs N small jobs through the host daemon, J at a time, each by a `ct run` of its own. Prints throughput, the time of a command, the memory of the daemon, whether records and clients agree, and what is left of processes, files, sockets and cgroups.',
      'Exit status 1 if anything is left or untrue.',
    ],
    options: JOBS_OPTIONS,
    examples: [{ command: 'ct bench jobs -n 200 -j 8', what: '200 jobs, 8 at a time' }],
    load: () => import('./commands/bench/jobs.ts'),
  },
  {
    name: 'bench chaos',
    summary: 'the same, while clients, VMMs, link processes and the daemon are killed at random',
    description: [
      'As `ct bench jobs`, with a kill -9 of a random client, VMM, link process or the daemon every second. Uses the daemon of this CT_HOME: set another one if jobs of yours are running.',
      'Exit status 1 if anything is left or untrue.',
    ],
    options: JOBS_OPTIONS,
    examples: [{ command: 'CT_HOME=/tmp/chaos ct bench chaos -n 500 -j 4', what: '500 jobs under attack' }],
    load: () => import('./commands/bench/chaos.ts'),
  },
  {
    name: 'completion',
    summary: 'print a script that completes ct in your shell',
    description: ['Prints the completion script for bash, zsh or fish on stdout.'],
    positionals: {
      placeholder: 'SHELL',
      max: 1,
      help: 'bash, zsh or fish',
      choices: ['bash', 'zsh', 'fish'],
    },
    options: [],
    examples: [
      { command: 'source <(ct completion bash)', what: 'for this shell; put it into ~/.bashrc to keep it' },
      { command: 'ct completion fish > ~/.config/fish/completions/ct.fish', what: 'for fish' },
    ],
    load: () => import('./commands/completion.ts'),
  },
];
