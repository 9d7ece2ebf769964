/** Takes the secrets of a job from its client, as a link process sees them come. */
import { CtError } from '../core/errors.ts';
import { MAX_JOB_SECRETS } from '../protocol/limits.ts';
import { parseSecret } from '../protocol/secret-record.ts';
import { SecretValues } from './secret-values.ts';

export class SecretIntake {
  readonly #values = new SecretValues();
  readonly #complete = Promise.withResolvers<SecretValues>();
  #count = 0;
  #ended = false;

  constructor() {
    this.#complete.promise.catch(() => {});
  }

  /** Wipes `payload`. Throws HOST_PROTOCOL, SECRET_UNUSABLE. */
  take(payload: Buffer): void {
    if (this.#ended || ++this.#count > MAX_JOB_SECRETS) {
      throw new CtError('HOST_PROTOCOL', 'the client sent more secrets than it may');
    }
    try {
      const { name, value } = parseSecret(payload);
      this.#values.add(name, value);
    } finally {
      payload.fill(0);
    }
  }

  end(): void {
    this.#ended = true;
    this.#complete.resolve(this.#values);
  }

  fail(error: CtError): void {
    this.#complete.reject(error);
    // Once complete they belong to the run, which may still be at its last step.
    if (!this.#ended) this.#values[Symbol.dispose]();
  }

  /** All of them, when the client has sent the last. Throws HOST_PROTOCOL unless they are those of `names`. */
  async expect(names: readonly string[]): Promise<SecretValues> {
    const values = await this.#complete.promise;
    const missing = names.find((name) => !values.has(name));
    const extra = values.names().find((name) => !names.includes(name));
    if (missing === undefined && extra === undefined) return values;
    throw new CtError(
      'HOST_PROTOCOL',
      missing === undefined
        ? `the client sent the secret \`${extra}\`, which no step names`
        : `the client did not send the secret \`${missing}\``,
    );
  }
}
