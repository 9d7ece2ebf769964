/** `ct image scan`. */

import type { Alert } from '../../../audit/alert.ts';
import { AlertFile, alertDirectory, MAX_EARLIER_FILES } from '../../../audit/alert-file.ts';
import { CtError, errorReport, messageOf } from '../../../core/errors.ts';
import { ctHomePath } from '../../../core/paths.ts';
import { VERSION } from '../../../core/version.ts';
import { policyDirectory } from '../../../host/policy-source.ts';
import { readAllowFile, readScanConfig, type ScanConfig } from '../../../image/scan/config.ts';
import { VulnDatabase } from '../../../image/scan/database.ts';
import { packagesOfSbom, suiteOfSbom } from '../../../image/scan/packages.ts';
import { doesCount, forgetGone, type ScanResult, storeResult } from '../../../image/scan/result.ts';
import { toSarif } from '../../../image/scan/sarif.ts';
import { requireClean, type Scan, scanWithDatabase } from '../../../image/scan/scan.ts';
import { SEVERITIES, type Severity, THRESHOLDS } from '../../../image/scan/severity.ts';
import { readSbom } from '../../../image/scan/stored-image.ts';
import { ALERT_THRESHOLD, watchImages } from '../../../image/scan/watch.ts';
import { ImageStore, type StoredImage } from '../../../image/store.ts';
import { cancelOnSignals } from '../../cancellation.ts';
import type { ParsedOptions } from '../../command.ts';
import type { Output } from '../../output.ts';
import { formatError, oneLine, type Style, styleFor } from '../../render/format.ts';
import { formatTable } from '../../render/table.ts';
import { Terminal } from '../../render/terminal.ts';

export async function run(parsed: ParsedOptions, output: Output): Promise<number> {
  const ctHome = ctHomePath();
  using cancellation = cancelOnSignals(output);
  const scanner = new Scanner(ctHome, parsed, output, cancellation.signal);
  if (parsed.has('watch')) {
    await scanner.watch();
    return 0;
  }
  const images = await scanner.images();
  if (images.length > 1 && parsed.value('format') === 'sarif') {
    throw new CtError('USAGE', 'a SARIF log is of one image', { hint: 'name one image' });
  }
  const scans: Scan[] = [];
  for (const image of images) {
    const scan = await scanner.scan(image);
    await storeResult(ctHome, scan.result);
    scans.push(scan);
    scanner.warn(scan);
    scanner.print(scan, images.length === 1);
  }
  await scanner.forgetGone();
  const { threshold } = scanner;
  if (threshold !== undefined) for (const { result } of scans) requireClean(result, threshold);
  return 0;
}

class Scanner {
  readonly #ctHome: string;
  readonly #store: ImageStore;
  readonly #parsed: ParsedOptions;
  readonly #output: Output;
  readonly #signal: AbortSignal;
  readonly #style: Style;

  constructor(ctHome: string, parsed: ParsedOptions, output: Output, signal: AbortSignal) {
    this.#ctHome = ctHome;
    this.#store = new ImageStore(ctHome);
    this.#parsed = parsed;
    this.#output = output;
    this.#signal = signal;
    this.#style = styleFor(output.isTty.stdout);
  }

  get threshold(): ScanConfig['failOn'] {
    const given = this.#parsed.value('fail-on');
    return THRESHOLDS.find((threshold) => threshold === given) ?? this.#config().failOn;
  }

  /** Those named, or all that are stored. Throws IMAGE_NOT_FOUND. */
  async images(): Promise<readonly StoredImage[]> {
    const { positionals } = this.#parsed;
    const stored = await this.#store.list();
    const named = positionals.map((name) => {
      const image = stored.find((entry) => entry.name === name);
      if (image) return image;
      throw new CtError('IMAGE_NOT_FOUND', `no image ${name} is stored`, {
        hint: `\`ct image build ${name}\` makes it; \`ct image ls\` lists those that are there`,
      });
    });
    if (positionals.length === 0 && stored.length === 0 && !this.#parsed.has('watch')) {
      throw new CtError('IMAGE_NOT_FOUND', 'no image is stored', { hint: '`ct image build` makes one' });
    }
    return positionals.length === 0 ? stored : named;
  }

  async scan(image: StoredImage): Promise<Scan> {
    const text = await readSbom(this.#store, image);
    // Read each time: while it watches, both may change.
    const { stale, exceptions } = this.#config();
    const options = {
      image: { name: image.name, digest: image.digest },
      sbom: packagesOfSbom(text),
      exceptions: [...exceptions, ...this.#parsed.values('allow').flatMap(readAllowFile)],
      stale,
      now: new Date(),
    };
    if (this.#parsed.value('detector') === 'apt') return this.#scanWithApt(text, options);
    using database = new VulnDatabase(this.#ctHome);
    return scanWithDatabase(database, options);
  }

  async #scanWithApt(text: string, options: Parameters<typeof scanWithDatabase>[1]): Promise<Scan> {
    const { scanWithApt } = await import('../../../image/scan/apt-detector.ts');
    using terminal = new Terminal(this.#output, { live: this.#output.isTty.stderr });
    let status: string | undefined;
    terminal.showStatus(() => status);
    return scanWithApt({
      ...options,
      ctHome: this.#ctHome,
      suite: suiteOfSbom(text),
      signal: this.#signal,
      onProgress: (what) => {
        status = what;
      },
    });
  }

  forgetGone(): Promise<void> {
    const isStored = (digest: string): Promise<boolean> =>
      this.#store.manifest(digest).then(
        () => true,
        () => false,
      );
    return forgetGone(this.#ctHome, isStored);
  }

  /** Until it is cancelled. */
  async watch(): Promise<void> {
    // The host daemon writes the same file, and is who begins a new one when it is full.
    const limits = { fileBytes: Number.POSITIVE_INFINITY, maxEarlierFiles: MAX_EARLIER_FILES };
    const file = (alert: Alert): void => {
      const alerts = new AlertFile(alertDirectory(this.#ctHome), limits);
      try {
        alerts.append(alert);
      } finally {
        void alerts.close();
      }
    };
    if (this.#parsed.value('format') === 'sarif') {
      throw new CtError('USAGE', 'a watch prints no SARIF', {
        hint: 'it prints tables, or with --format json a line per look',
      });
    }
    const style = styleFor(this.#output.isTty.stderr);
    await watchImages({
      ctHome: this.#ctHome,
      images: () => this.images(),
      scan: (image) => this.scan(image),
      alerts: {
        file: (alert) => {
          try {
            file(alert);
          } catch (error) {
            this.#say(`alert ${alert.id} (${alert.title}) could not be written: ${messageOf(error)}`);
          }
        },
      },
      threshold: this.threshold ?? ALERT_THRESHOLD,
      signal: this.#signal,
      onScan: (scan, fresh) => {
        this.warn(scan);
        this.print({ ...scan, result: { ...scan.result, findings: fresh } }, false);
      },
      onProblem: (_image, error) => {
        this.#output.write('stderr', formatError(errorReport(error), style));
      },
    });
  }

  warn({ result, warnings }: Scan): void {
    for (const warning of warnings) this.#say(warning);
    const { unexamined } = result.packages;
    if (unexamined.length > 0) {
      const some = unexamined.slice(0, 3).join(', ');
      this.#say(
        `nobody looks after ${unexamined.length} of its components: ${some}${unexamined.length > 3 ? ', …' : ''}`,
      );
    }
  }

  /** `alone`: the document is all there is on stdout; else each is a line. */
  print({ result }: Scan, alone: boolean): void {
    switch (this.#parsed.value('format')) {
      case 'json':
        this.#output.write('stdout', `${JSON.stringify(result, undefined, alone ? 2 : 0)}\n`);
        return;
      case 'sarif':
        this.#output.write('stdout', toSarif(result, VERSION));
        return;
      default:
        this.#output.write('stdout', this.#table(result));
    }
  }

  #table(result: ScanResult): string {
    const { image, counts, findings, packages, source, detector } = result;
    const counting = findings.filter(doesCount);
    const rows = counting.map(({ severity, score, id, package: entry, fixedIn, summary }) => [
      score === undefined ? severity : `${severity} ${score.toFixed(1)}`,
      id,
      entry.name,
      entry.version,
      fixedIn ?? '-',
      shorten(summary),
    ]);
    const table =
      rows.length === 0
        ? ''
        : formatTable([['SEVERITY', 'ID', 'PACKAGE', 'INSTALLED', 'FIXED IN', 'SUMMARY'], ...rows]);
    const named = (severity: Severity): string[] =>
      counts[severity] > 0 ? [`${counts[severity]} ${severity}`] : [];
    const sum = SEVERITIES.flatMap(named).join(', ');
    const excused = findings.length - counting.length;
    const origin = detector === 'apt' ? 'security updates' : 'database';
    const head = `${image.name} (${image.digest.slice(0, 19)}), ${packages.examined} packages, ${origin} as of ${source.asOf.slice(0, 10)}`;
    const what = this.#parsed.has('watch') ? `${counting.length} new` : sum === '' ? 'nothing known' : sum;
    const more = excused > 0 ? `; ${excused} accepted` : '';
    return `${table}${this.#style.bold(`${oneLine(head)}: ${what}${more}`)}\n`;
  }

  #config(): ScanConfig {
    return readScanConfig(policyDirectory({ ctHome: this.#ctHome, env: process.env }));
  }

  #say(warning: string): void {
    this.#output.write('stderr', `ct: ${oneLine(warning)}\n`);
  }
}

function shorten(text: string): string {
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}
