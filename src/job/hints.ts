/** Why a failed step probably failed, and what to do about it. */

export interface FailedStep {
  /** Last bytes of its stdout and stderr; guest-controlled. Only the last 16 KiB are looked at. */
  readonly output: Uint8Array;
  /** 128 + signal if it was killed, 127 not found, 126 not executable. */
  readonly exitCode: number;
  readonly oomKilled: boolean;
  /** Name of the image, for messages. */
  readonly image: string;
  readonly memoryMib: number;
  readonly diskMib?: number;
  /** The step's program itself could not be started. */
  readonly startError?: { readonly errno: number; readonly program: string };
}

/** One or two sentences for the user, or undefined if nothing known matches. Never throws. */
export function hintFor(step: FailedStep): string | undefined {
  void step;
  return undefined;
}
