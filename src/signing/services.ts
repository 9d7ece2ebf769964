import { ServiceSelector, SigningConfig } from '@sigstore/protobuf-specs';
import { CtError } from '../core/errors.ts';

const MAX_CONFIG_BYTES = 1024 * 1024; // the public-good one has 2 KiB
const MEDIA_TYPE = 'application/vnd.dev.sigstore.signingconfig.v0.2+json';

export interface LogService {
  readonly url: string;
  /** Major version of the API of Rekor. */
  readonly apiVersion: 1 | 2;
}

/** The services that vouch for a signature. Which ones is configuration: none is built in. */
export interface SigningServices {
  /** Fulcio; needed by keyless signers only. */
  readonly certificateAuthority?: string;
  /** Rekor. */
  readonly logs: readonly LogService[];
  /** RFC 3161; the base URL, or the full one with `/api/v1/timestamp`. */
  readonly timestampAuthorities: readonly string[];
}

export const NO_SERVICES: SigningServices = { logs: [], timestampAuthorities: [] };

/**
 * Reads a Sigstore `signing_config.json` (v0.2) and picks the services in force at `now`: the newest of each operator
 * whose API is known, as many as the file's selector says. Throws `SIGNING_CONFIG_INVALID`.
 */
export function parseSigningConfig(document: Uint8Array, now: Date): SigningServices {
  let config: SigningConfig;
  try {
    if (document.byteLength > MAX_CONFIG_BYTES) throw new Error(`more than ${MAX_CONFIG_BYTES} bytes`);
    config = SigningConfig.fromJSON(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(document)));
  } catch (error) {
    throw new CtError('SIGNING_CONFIG_INVALID', 'the signing configuration does not parse', { cause: error });
  }
  if (config.mediaType !== MEDIA_TYPE) {
    throw new CtError('SIGNING_CONFIG_INVALID', `the signing configuration is not of ${MEDIA_TYPE}`);
  }
  const [authority] = inForce(config.caUrls, 1, now);
  const services = {
    ...(authority === undefined ? {} : { certificateAuthority: authority.url }),
    logs: select(inForce(config.rekorTlogUrls, 2, now), config.rekorTlogConfig, 'logs').map(
      ({ url, majorApiVersion }): LogService => ({ url, apiVersion: majorApiVersion === 2 ? 2 : 1 }),
    ),
    timestampAuthorities: select(
      inForce(config.tsaUrls, 1, now),
      config.tsaConfig,
      'timestamp authorities',
    ).map(({ url }) => url),
  };
  checkServices(services);
  return services;
}

/**
 * Throws `SIGNING_CONFIG_INVALID` if a URL is not one that may be given a token or a signature: HTTPS, or HTTP on this
 * machine, without credentials.
 */
export function checkServices(services: SigningServices): void {
  for (const url of [
    ...(services.certificateAuthority === undefined ? [] : [services.certificateAuthority]),
    ...services.logs.map((log) => log.url),
    ...services.timestampAuthorities,
  ]) {
    const parsed = URL.parse(url);
    const local = parsed !== null && ['localhost', '127.0.0.1', '[::1]'].includes(parsed.hostname);
    const secure = parsed?.protocol === 'https:' || (parsed?.protocol === 'http:' && local);
    if (!secure || parsed.username !== '' || parsed.password !== '' || parsed.search + parsed.hash !== '') {
      throw new CtError('SIGNING_CONFIG_INVALID', `a signing service needs a plain https URL, not ${url}`);
    }
  }
}

type Service = SigningConfig['caUrls'][number];

/** Newest first, one of each operator. */
function inForce(services: readonly Service[], maxApiVersion: number, now: Date): Service[] {
  const started = ({ validFor }: Service): number => validFor?.start?.getTime() ?? 0;
  const usable = services
    .filter(({ majorApiVersion }) => majorApiVersion >= 1 && majorApiVersion <= maxApiVersion)
    .filter((service) => started(service) <= now.getTime() && (service.validFor?.end ?? now) >= now)
    .sort((a, b) => b.majorApiVersion - a.majorApiVersion || started(b) - started(a));
  return usable.filter(
    (service, index) =>
      service.operator === '' || usable.findIndex(({ operator }) => operator === service.operator) === index,
  );
}

function select(services: Service[], config: SigningConfig['rekorTlogConfig'], what: string): Service[] {
  if (config === undefined) return [];
  const wanted =
    config.selector === ServiceSelector.ALL
      ? Math.max(services.length, 1)
      : config.selector === ServiceSelector.ANY
        ? 1
        : config.selector === ServiceSelector.EXACT
          ? config.count
          : 0;
  if (wanted < 1 || services.length < wanted) {
    throw new CtError(
      'SIGNING_CONFIG_INVALID',
      `the signing configuration asks for ${wanted} ${what} and has ${services.length} in force`,
    );
  }
  return services.slice(0, wanted);
}
