/** Which code may run in a VM (docs/adr/0017-signed-code.md): what policy decides, and what the guest agent is told. */

/** In order of strictness. `audit` records, `enforce` refuses, `terminate` refuses and ends the run. */
export const CODE_POLICY_MODES = ['off', 'audit', 'enforce', 'terminate'] as const;
export type CodePolicyMode = (typeof CODE_POLICY_MODES)[number];
/** What can be trusted besides the image and what is signed: the working tree as staged, and what steps without network wrote. */
export const CODE_ORIGINS = ['source', 'built'] as const;
export type CodeOrigin = (typeof CODE_ORIGINS)[number];

/** A program that runs the files it is given. */
export interface Interpreter {
  /** In the image; one that is not there is left out. */
  readonly path: string;
  /** Ends of names of files that it runs, wherever it opens them: `.py`. MAX_INTERPRETER_NAMES at most, as of options. */
  readonly endings: readonly string[];
  /** Options that are followed by code: `-c`. */
  readonly options: readonly string[];
  /** It may not be started to read code from an option or from its standard input. */
  readonly inlineForbidden: boolean;
  /** Every file that its command line names is code, as for a shell; else the first one only. */
  readonly everyArgument: boolean;
}

/** Of a run whose code is judged. */
export interface CodeSettings {
  readonly mode: Exclude<CodePolicyMode, 'off'>;
  readonly trust: Readonly<Record<CodeOrigin, boolean>>;
  /** SHA-256 in hex of signed code; MAX_SIGNED_DIGESTS at most. */
  readonly digests: readonly string[];
  /** MAX_INTERPRETERS at most. */
  readonly interpreters: readonly Interpreter[];
}

/** Stages of a run by what they may do with code: the tree is written; a step has a network; a step has none. */
export type CodePhase = 'stage' | 'fetch' | 'build';
