/** What a rendering of a run has to do. */
import type { JobEnd } from '../../job/schedule.ts';
import type { RunEvent } from '../../protocol/run.ts';
import type { Stream } from '../output.ts';
import type { JobRecord, RunRecord } from './record.ts';

export interface Renderer extends Disposable {
  /** Something before the jobs: an image that is being built. `milestone`: worth a line of a log. */
  progress(what: string, milestone: boolean): void;
  /** About the images of the run, before a job starts: worth reading, and no error. */
  imageNotice(lines: readonly string[]): void;
  jobStart(job: JobRecord): void;
  /** After the record has taken the event in. */
  event(job: JobRecord, event: RunEvent): void;
  output(job: JobRecord, stream: Stream, step: number, bytes: Buffer): undefined | Promise<void>;
  /** Something about a job that comes from this side: where artifacts are, what was left out. */
  notice(job: JobRecord, level: 'info' | 'warning', message: string): void;
  jobEnd(job: JobRecord, end: JobEnd): void;
  end(run: RunRecord): void;
}
