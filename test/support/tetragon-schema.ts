/**
 * What of Tetragon's schema is used: the fields of its messages with their types, as protojson writes them. The check is strict:
 * an unknown field, a 64-bit integer that is a number, a time without a zone are all wrong.
 */
type Type = string | readonly [string];

const PROCESS_EVENT = { process: 'Process', parent: 'Process', ancestors: ['Process'] } as const;
const HOOK = { policy_name: 'string', message: 'string', tags: ['string'] } as const;
const FILE = { mount: 'string', path: 'string', flags: 'string', permission: 'string' } as const;

const MESSAGES: Readonly<Record<string, Readonly<Record<string, Type>>>> = {
  GetEventsResponse: {
    process_exec: 'ProcessExec',
    process_exit: 'ProcessExit',
    process_kprobe: 'ProcessKprobe',
    process_tracepoint: 'ProcessTracepoint',
    process_lsm: 'ProcessLsm',
    rate_limit_info: 'RateLimitInfo',
    node_name: 'string',
    time: 'time',
    cluster_name: 'string',
  },
  RateLimitInfo: { number_of_dropped_process_events: 'uint64' },
  ProcessExec: PROCESS_EVENT,
  ProcessExit: { ...PROCESS_EVENT, signal: 'string', status: 'uint32', time: 'time' },
  ProcessKprobe: {
    ...PROCESS_EVENT,
    ...HOOK,
    function_name: 'string',
    args: ['KprobeArgument'],
    return: 'KprobeArgument',
    action: 'KprobeAction',
    return_action: 'KprobeAction',
    data: ['KprobeArgument'],
  },
  ProcessTracepoint: {
    ...PROCESS_EVENT,
    ...HOOK,
    subsys: 'string',
    event: 'string',
    args: ['KprobeArgument'],
    action: 'KprobeAction',
  },
  ProcessLsm: {
    ...PROCESS_EVENT,
    ...HOOK,
    function_name: 'string',
    args: ['KprobeArgument'],
    action: 'KprobeAction',
    ima_hash: 'string',
  },
  Process: {
    exec_id: 'string',
    pid: 'uint32',
    uid: 'uint32',
    cwd: 'string',
    binary: 'string',
    arguments: 'string',
    flags: 'string',
    start_time: 'time',
    auid: 'uint32',
    docker: 'string',
    parent_exec_id: 'string',
    refcnt: 'uint32',
    tid: 'uint32',
    process_credentials: 'ProcessCredentials',
    in_init_tree: 'bool',
  },
  ProcessCredentials: {
    uid: 'uint32',
    gid: 'uint32',
    euid: 'uint32',
    egid: 'uint32',
    suid: 'uint32',
    sgid: 'uint32',
    fsuid: 'uint32',
    fsgid: 'uint32',
  },
  KprobeArgument: {
    string_arg: 'string',
    int_arg: 'int32',
    size_arg: 'uint64',
    path_arg: 'KprobePath',
    file_arg: 'KprobeFile',
    sock_arg: 'KprobeSock',
    long_arg: 'int64',
    uint_arg: 'uint32',
    linux_binprm_arg: 'KprobeLinuxBinprm',
    syscall_id: 'SyscallId',
    sockaddr_arg: 'KprobeSockaddr',
    label: 'string',
  },
  KprobePath: FILE,
  KprobeFile: FILE,
  KprobeLinuxBinprm: { path: 'string', flags: 'string', permission: 'string' },
  KprobeSock: {
    family: 'string',
    type: 'string',
    protocol: 'string',
    mark: 'uint32',
    priority: 'uint32',
    saddr: 'string',
    daddr: 'string',
    sport: 'uint32',
    dport: 'uint32',
    cookie: 'uint64',
    state: 'string',
  },
  KprobeSockaddr: { family: 'string', addr: 'string', port: 'uint32' },
  SyscallId: { id: 'uint32', abi: 'string' },
};

/** Of the fields of a message, at most one may be there. */
const ONE_OF: Readonly<Record<string, (field: string) => boolean>> = {
  GetEventsResponse: (field) => field.startsWith('process_') || field === 'rate_limit_info',
  KprobeArgument: (field) => field !== 'label',
};

const ACTIONS = new Set(
  'UNKNOWN POST SIGKILL OVERRIDE SIGNAL NOPOST'.split(' ').map((word) => `KPROBE_ACTION_${word}`),
);

const inRange = (value: unknown, low: bigint, high: bigint): boolean =>
  Number.isInteger(value) && BigInt(value as number) >= low && BigInt(value as number) < high;
const isDecimal = (value: unknown, low: bigint, high: bigint): boolean =>
  typeof value === 'string' &&
  /^(0|-?[1-9][0-9]*)$/.test(value) &&
  BigInt(value) >= low &&
  BigInt(value) < high;

const SCALARS: Readonly<Record<string, (value: unknown) => boolean>> = {
  string: (value) => typeof value === 'string',
  bool: (value) => typeof value === 'boolean',
  uint32: (value) => inRange(value, 0n, 2n ** 32n),
  int32: (value) => inRange(value, -(2n ** 31n), 2n ** 31n),
  uint64: (value) => isDecimal(value, 0n, 2n ** 64n),
  int64: (value) => isDecimal(value, -(2n ** 63n), 2n ** 63n),
  KprobeAction: (value) => typeof value === 'string' && ACTIONS.has(value),
  time: (value) =>
    typeof value === 'string' &&
    /^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.([0-9]{3}|[0-9]{6}|[0-9]{9}))?Z$/.test(value) &&
    !Number.isNaN(Date.parse(value)),
};

/** What is wrong with an event, as `path: why`; empty if Tetragon's schema accepts it. */
export function schemaProblems(value: unknown, type: Type = 'GetEventsResponse', path = 'event'): string[] {
  if (typeof type !== 'string') {
    if (!Array.isArray(value)) return [`${path}: no list`];
    return value.flatMap((item, index) => schemaProblems(item, type[0], `${path}[${index}]`));
  }
  const scalar = SCALARS[type];
  if (scalar) return scalar(value) ? [] : [`${path}: no ${type}: ${JSON.stringify(value)}`];
  const fields = MESSAGES[type];
  if (!fields) throw new Error(`no message ${type}`);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return [`${path}: no ${type}`];
  const names = Object.keys(value);
  const chosen = names.filter((name) => ONE_OF[type]?.(name));
  return [
    ...(chosen.length > 1 ? [`${path}: ${chosen.join(' and ')} at once`] : []),
    ...Object.entries(value).flatMap(([name, item]) => {
      const wanted = Object.hasOwn(fields, name) ? fields[name] : undefined;
      return wanted === undefined
        ? [`${path}.${name}: ${type} has no such field`]
        : schemaProblems(item, wanted, `${path}.${name}`);
    }),
  ];
}
